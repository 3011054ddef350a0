"""gateway/scheduler/program_gate.py: calls of programs wait at tool boundaries until their KV fits."""

import asyncio
from contextlib import suppress

import pytest

from engine.sampling_params import SamplingParams
from gateway.graph.call import Call, CallSpec, Usage
from gateway.graph.segments import Slot, Text
from gateway.graph.session import Session
from gateway.scheduler.program_gate import MAX_WAIT_SECONDS, ProgramGate
from tests.fakes.engine import FakeEngine
from tests.gateway.scheduler.test_program_kv import Member

SOON = [1_000.0] * 8


class Harness:
    """Gate with one engine of 4,000 tokens, whose row takes a second."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ranks: dict[str, float] = {}
        self.gate = ProgramGate(lambda call: self.ranks.get(call.id, 0.0), lambda call: 256, lambda: self.now)
        self.engine = FakeEngine()
        self.engine.kv_tokens = 4_000
        self.engine.step_times = self.engine.step_times._replace(row_seconds=1.0)

    def call(self, prompt: int, parent: Call | None = None, *, rank: float = 0.0) -> Call:
        session = Session(id="", tenant="", created=0.0, ttl=60.0)
        call = session.add(CallSpec(model="m", segments=[Text([1] * prompt), Slot(None, SamplingParams())]))
        program = call.id if parent is None or parent.program is None else parent.program.program_id
        member = None if parent is None else parent.program
        assert member is None or isinstance(member, Member)
        call.program = Member(call.id, program, member)
        self.ranks[call.id] = rank
        return call

    def run(self, call: Call, returns: list[float]) -> None:
        """Let a call run to its end."""
        assert self.gate.try_enter(call, self.engine)
        self.finish(call, returns)

    def finish(self, call: Call, returns: list[float]) -> None:
        call.usage = Usage(prompt=sum(segment.length for segment in call.spec.segments if isinstance(segment, Text)))
        self.gate.leave(call)
        self.gate.expect(call, returns)

    def start(self, call: Call) -> "asyncio.Task[None]":
        """Run a call as the executor does."""

        async def run() -> None:
            while not self.gate.try_enter(call, self.engine):
                await self.gate.wait(call, self.engine)

        return asyncio.create_task(run())


async def settle(seconds: float = 0.05) -> None:
    await asyncio.sleep(seconds)


async def test_a_newcomer_waits_until_the_other_program_has_ended() -> None:
    harness = Harness()
    first = harness.call(2_500)
    harness.run(first, SOON)
    newcomer = harness.call(2_000)
    waiting = harness.start(newcomer)
    await settle()
    assert harness.gate.waiting_calls == 1
    turn = harness.call(2_600, parent=first)
    assert harness.gate.try_enter(turn, harness.engine), "a call that extends another never waits"
    harness.finish(turn, [])
    await asyncio.wait_for(waiting, 5)
    assert harness.gate.waiting_calls == 0


async def test_calls_enter_in_the_order_of_their_ranks() -> None:
    harness = Harness()
    first = harness.call(3_900)
    assert harness.gate.try_enter(first, harness.engine)
    entered: list[str] = []
    tasks = []
    for name, rank in (("late", 3.0), ("early", 1.0)):
        call = harness.call(3_000, rank=rank)
        task = harness.start(call)
        task.add_done_callback(lambda _, name=name: entered.append(name))  # type: ignore[misc]
        tasks.append(task)
    await settle()
    assert harness.gate.waiting_calls == 2
    harness.finish(first, [])
    await settle()
    assert entered == ["early"]
    for task in tasks:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    assert harness.gate.waiting_calls == 0


async def test_beside_an_idle_engine_a_call_waits_no_longer_than_the_displaced_kv_is_worth() -> None:
    harness = Harness()
    harness.run(harness.call(3_000), [50_000.0] * 8)
    harness.engine.step_times = harness.engine.step_times._replace(row_seconds=100.0)
    waiting = harness.start(harness.call(2_000))
    await settle(0.4)
    assert not waiting.done()
    harness.now += 250_000.0  # over 2,256 tokens of 100 s
    await asyncio.wait_for(waiting, 5)


async def test_no_call_waits_longer_than_the_limit() -> None:
    harness = Harness()
    harness.run(harness.call(3_000), [5_000.0] * 8)
    first = harness.call(700)
    assert harness.gate.try_enter(first, harness.engine)
    waiting = harness.start(harness.call(2_000))
    await settle(0.4)
    assert not waiting.done(), "the engine has work and the retained KV is worth its memory"
    harness.now += MAX_WAIT_SECONDS
    await asyncio.wait_for(waiting, 5)


async def test_what_is_small_or_in_no_program_or_on_an_unknown_engine_never_waits() -> None:
    harness = Harness()
    assert harness.gate.try_enter(harness.call(3_900), harness.engine)
    plain, other = harness.call(3_900), FakeEngine()
    plain.program = None
    assert harness.gate.try_enter(plain, harness.engine)
    assert harness.gate.try_enter(harness.call(3_900), other)
    assert not harness.gate.try_enter(harness.call(3_900), harness.engine)
    harness.engine.kv_tokens = 400_000
    assert harness.gate.try_enter(harness.call(3_900), harness.engine)


async def test_a_call_that_waits_notices_that_the_engine_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.scheduler.program_gate._CHECK_SECONDS", 0.01)
    harness = Harness()
    assert harness.gate.try_enter(harness.call(3_900), harness.engine)
    task = asyncio.create_task(harness.gate.wait(harness.call(3_900), harness.engine))
    await settle()
    assert not task.done()
    harness.engine.is_ready = False
    await asyncio.wait_for(task, 5)


async def test_a_call_that_changes_its_engine_leaves_the_first() -> None:
    harness = Harness()
    other = FakeEngine(name="other")
    other.kv_tokens = 4_000
    call = harness.call(3_900)
    assert harness.gate.try_enter(call, harness.engine)
    assert harness.gate.try_enter(call, harness.engine)
    assert harness.gate.try_enter(call, other)
    assert harness.gate.try_enter(harness.call(3_900), harness.engine)
