"""gateway/scheduler/isolation.py: calls that may have killed an engine get one more attempt, alone."""

import asyncio
import dataclasses
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from engine.config import EngineConfig
from engine.sampling_params import SamplingParams
from gateway.engines.local.subprocess import SubprocessEngine
from gateway.engines.pool import EnginePool
from gateway.engines.protocol import Engine, EngineLost, EventCallback
from gateway.graph.call import Call, CallState
from gateway.graph.references import Reference
from gateway.graph.segments import Input, Segment, Slot, Text
from gateway.scheduler import Scheduler
from tests.fakes.checkpoints import write_tiny_llama
from tests.fakes.engine import FakeContext, FakeEngine, FakeEngines
from tests.gateway.graph.test_session import session, spec
from tests.gateway.scheduler.scheduler_harness import ANSWER

KILLER = 7


class MortalEngine(FakeEngine):
    """Engine that dies, with all its contexts, when it generates after a killer's token."""

    def __init__(self, name: str = "fake") -> None:
        super().__init__(name=name)
        self.doomed, self.doom_spreads = {KILLER}, True
        self.loads_at_death: list[int] = []
        """Number of other contexts that were open at each death."""
        self.maximum = 0
        """Largest number of contexts that were open together since the first death."""

    def lose(self) -> None:
        self.loads_at_death.append(self.load - 1)
        super().lose()

    def open(self, scope: str, urgency: object) -> FakeContext:
        context = super().open(scope, urgency)  # type: ignore[arg-type]
        if self.loads_at_death:
            self.maximum = max(self.maximum, self.load)
        return context


def killer() -> Call:
    return session().add(dataclasses.replace(spec(deferred=True), segments=[Text([KILLER, KILLER]), ANSWER]))


async def drained(scheduler: Scheduler) -> None:
    async with asyncio.timeout(30):
        await scheduler.wait_idle()


@pytest.mark.parametrize("among", [0, 1, 20])
async def test_a_call_that_kills_engines_gets_two_attempts_the_second_one_alone(among: int) -> None:
    engine = MortalEngine()
    scheduler = Scheduler(FakeEngines(engine), 100)
    engine.hold()
    others = [session().add(spec(deferred=True)) for _ in range(among)]
    bad = killer()
    for call in (*others[: among // 2], bad, *others[among // 2 :]):
        scheduler.submit(call)
    for _ in range(20):
        await asyncio.sleep(0)
    engine.released.set()
    await drained(scheduler)
    assert bad.state is CallState.FAILED
    assert bad.failure is not None
    assert bad.failure.code == "engine_failed"
    assert "second attempt" in bad.failure.message
    assert engine.loads_at_death == [among, 0], "two attempts, and no other call ran during the second one"
    assert engine.maximum == 1, "all suspects ran one after another"
    assert [call.state for call in others] == [CallState.DONE] * among


async def test_new_calls_wait_until_the_suspects_have_run() -> None:
    engine = MortalEngine()
    scheduler = Scheduler(FakeEngines(engine), 100)
    bad = killer()
    scheduler.submit(bad)
    for _ in range(200):
        await asyncio.sleep(0)
        if engine.loads_at_death:
            break
    late = [session().add(spec(deferred=True)) for _ in range(3)]
    for call in late:
        scheduler.submit(call)
    await drained(scheduler)
    assert engine.loads_at_death == [0, 0]
    assert [call.state for call in late] == [CallState.DONE] * 3


async def test_new_calls_run_on_engines_that_are_not_reserved() -> None:
    first, second = MortalEngine("first"), MortalEngine("second")
    first.hold()
    scheduler = Scheduler(FakeEngines(first, second), 100, place=lambda call, engines, held: engines[0])
    suspect = session().add(spec(deferred=True))
    scheduler.submit(suspect)
    for _ in range(20):
        await asyncio.sleep(0)
    second.hold()
    first.lose()  # the suspect gets another attempt on the second engine, which holds it there
    for _ in range(50):
        await asyncio.sleep(0)
    late = session().add(spec(deferred=True))
    scheduler.submit(late)
    async with asyncio.timeout(10):
        await late.output.wait_final()
    assert (late.engine, suspect.engine) == ("first", "second")
    second.released.set()
    await drained(scheduler)
    assert suspect.state is CallState.DONE


async def test_calls_that_a_running_context_needs_pass_a_waiting_suspect() -> None:
    """Let a context of the reserved engine read the output of a call of its session that has not begun yet."""
    engine = MortalEngine()
    scheduler = Scheduler(FakeEngines(engine), 100)
    shared = session()
    shared.add_variable("later")
    reads: list[Segment] = [Text([1, 2]), Input(Reference("later"), "messages.0.content"), ANSWER]
    reader = shared.add(dataclasses.replace(spec(deferred=True), segments=reads))
    scheduler.submit(reader)
    for _ in range(20):
        await asyncio.sleep(0)
    assert engine.load == 1, "its known text was filled"
    engine.hold()
    suspect = session().add(spec(deferred=True))
    scheduler.submit(suspect)
    for _ in range(20):
        await asyncio.sleep(0)
    engine.opened[-1].lost = True
    engine.released.set()
    await asyncio.sleep(0.05)
    assert suspect.state is not CallState.DONE, "the engine has other work"
    producer = shared.add(spec(deferred=True))  # admitted, because the context of its session may need it
    scheduler.submit(producer)
    async with asyncio.timeout(10):
        await producer.output.wait_final()
    shared.set_values(shared.add_variable("later", "xyz"))
    await drained(scheduler)
    assert suspect.state is reader.state is CallState.DONE


async def test_a_busy_engine_makes_no_suspects() -> None:
    class BusyContext(FakeContext):
        async def generate(self, sampling: SamplingParams, tell: EventCallback, *, heals: bool = False) -> None:
            if len(engine.opened) <= 4:
                raise EngineLost("busy", suspect=False)
            await super().generate(sampling, tell)

    class BusyEngine(FakeEngine):
        def open(self, scope: str, urgency: object) -> FakeContext:
            context = BusyContext(self, scope, urgency)  # type: ignore[arg-type]
            self.opened.append(context)
            self.load += 1
            return context

    engine = BusyEngine()
    scheduler = Scheduler(FakeEngines(engine), 100)
    calls = [session().add(spec(deferred=True)) for _ in range(2)]
    for call in calls:
        scheduler.submit(call)
    await drained(scheduler)
    assert [call.state for call in calls] == [CallState.DONE] * 2
    assert len(engine.opened) == 6, "three attempts each, concurrently"


async def test_calls_of_a_killed_engine_process_run_again_one_at_a_time(tmp_path: Path) -> None:
    pool = EnginePool(wait_seconds=60.0)
    config = EngineConfig(model=str(write_tiny_llama(tmp_path, window=512)), kv_tokens=2048)
    engine = SubprocessEngine("real", config, pool.notify_change)
    await engine.start()
    pool.add("m", engine)
    maximum = 0

    class PoolEngines:
        async def find_ready(self, model: str, *, wait: bool = True) -> Sequence[Engine]:
            return await pool.find_ready(model, wait=wait)

    scheduler = Scheduler(PoolEngines(), 100)
    long = Slot(None, SamplingParams(max_tokens=60, temperature=0.0, ignore_eos=True))
    calls = [
        session().add(dataclasses.replace(spec(deferred=True), segments=[Text([1, 2, 3 + index]), long]))
        for index in range(4)
    ]
    try:
        for call in calls:
            scheduler.submit(call)
        async with asyncio.timeout(30):
            while not all(call.state is CallState.DECODE for call in calls):
                await asyncio.sleep(0.001)
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        async with asyncio.timeout(60):
            while scheduler.unfinished_calls:
                if engine.restarts:
                    maximum = max(maximum, engine.load)
                await asyncio.sleep(0.001)
        assert [call.state for call in calls] == [CallState.DONE] * 4
        assert all(call.usage.completion == 60 for call in calls)
        assert (engine.restarts, maximum) == (1, 1)
    finally:
        await engine.close()
