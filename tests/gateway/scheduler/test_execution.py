"""Tests of gateway/scheduler/execution.py: engines, attempts and fallback models of calls."""

import asyncio
import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest

from gateway.engines.protocol import ContextRefused, Engine, EngineBusy, EngineLost, NoEngine, Urgency
from gateway.graph.call import Call, CallSpec, CallState, ProgramMember, Rendering
from gateway.graph.errors import Failure
from gateway.graph.segments import Segment, Text
from gateway.graph.session import Session
from gateway.scheduler import Scheduler
from gateway.scheduler.execution import _reset
from tests.fakes.engine import FakeContext, FakeEngine, FakeEngines
from tests.gateway.graph.test_session import session, spec
from tests.gateway.scheduler.scheduler_harness import ANSWER, SchedulerHarness, settle, slot, submit
from tests.gateway.scheduler.test_program_kv import Member


async def test_a_call_that_lost_its_engine_runs_again() -> None:
    harness = SchedulerHarness()
    harness.engine.hold()
    call = harness.run()
    await settle()
    harness.engine.opened[0].lost = True
    harness.engine.released.set()
    await harness.scheduler.wait_idle()
    assert call.state is CallState.DONE
    assert call.output.value == "2"
    assert len(harness.engine.opened) == 2
    assert harness.engine.load == 0


def plain_call(prompt: int, program: str) -> Call:
    """Return the call of a plain request of a program."""
    call = Session(id="", tenant="", created=0.0, ttl=60.0).add(
        CallSpec(model="m", segments=[Text([1] * prompt), ANSWER], deferred=True)
    )
    call.program = Member(call.id, program)
    return call


async def test_engines_are_told_when_the_kv_of_a_program_is_read_again() -> None:
    harness = SchedulerHarness()
    call, other = plain_call(12, "a"), harness.run()
    harness.scheduler.submit(call)
    await harness.scheduler.wait_idle()
    for _ in range(2):
        harness.scheduler.expect_return(call, [1.0, 2.0])
    harness.scheduler.expect_return(other, [1.0])
    assert [context.retained for context in harness.engine.opened] == [[], [[1.0, 2.0]]]


async def test_a_new_program_waits_until_its_kv_fits_if_that_is_set() -> None:
    engine = FakeEngine()
    engine.kv_tokens = 1_000
    scheduler = Scheduler(FakeEngines(engine), 10, pause_programs=True)
    first, second = plain_call(700, "a"), plain_call(600, "b")
    engine.hold()
    for call in (first, second):
        scheduler.submit(call)
    await settle()
    assert [first.state, second.state] == [CallState.PREFILL, CallState.QUEUED]
    engine.released.set()
    await asyncio.wait_for(scheduler.wait_idle(), 10)
    assert [first.state, second.state] == [CallState.DONE, CallState.DONE]
    third, fourth = plain_call(700, "c"), plain_call(600, "d")
    engine.hold()
    for call in (third, fourth):
        scheduler.submit(call)
    await settle()
    scheduler.cancel(fourth, Failure("cancelled", "test"))
    engine.released.set()
    await asyncio.wait_for(scheduler.wait_idle(), 10)
    assert [third.state, fourth.state] == [CallState.DONE, CallState.CANCELLED]


async def test_an_engine_that_pauses_prompts_itself_decides_which_plain_requests_wait() -> None:
    engine = FakeEngine()
    engine.kv_tokens, engine.pauses_prompts = 1_000, True
    for pauses in (True, False):
        engine.opened.clear()
        scheduler = Scheduler(FakeEngines(engine), 10, pause_programs=pauses)
        session = Session(id="s", tenant="", created=0.0, ttl=60.0)
        named = session.add(CallSpec(model="m", segments=[Text([1] * 700), ANSWER], deferred=True))
        named.program = Member(named.id, "named")
        calls = [plain_call(700, "a"), plain_call(600, "b"), named]
        engine.hold()
        for call in calls:
            scheduler.submit(call)
        await settle()
        assert {call.state for call in calls} == {CallState.PREFILL}, "none waits in the gateway"
        assert [context.urgency.pausable for context in engine.opened] == [pauses, pauses, False]
        engine.released.set()
        await asyncio.wait_for(scheduler.wait_idle(), 10)


async def test_an_exposed_call_that_lost_its_engine_fails() -> None:
    harness = SchedulerHarness()
    harness.engine.deaths = 1
    call = harness.session.add(dataclasses.replace(spec(deferred=True), segments=[Text([1] * 12), ANSWER]))
    harness.scheduler.submit(call)
    with harness.session.read(call.output) as reader:
        assert [piece.text for piece in await reader.next_pieces()] == ["1"]
    await harness.scheduler.wait_idle()
    assert call.state is CallState.FAILED
    assert len(harness.engine.opened) == 1


async def test_a_second_attempt_discards_the_text_of_the_first() -> None:
    harness = SchedulerHarness()
    harness.engine.deaths = 1
    call = harness.session.add(dataclasses.replace(spec(deferred=True), segments=[Text([1] * 12), ANSWER]))
    harness.scheduler.submit(call)
    await harness.scheduler.wait_idle()
    assert call.output.value == "12"
    assert call.usage.completion == 2
    assert len(harness.engine.opened) == 2


async def test_a_call_that_kills_every_engine_fails_alone() -> None:
    harness = SchedulerHarness()
    harness.engine.doomed = {7}
    harness.engine.doom_spreads = True
    killer = harness.session.add(dataclasses.replace(spec(deferred=True), segments=[Text([7, 7]), ANSWER]))
    others = [harness.session.add(spec(deferred=True)) for _ in range(6)]
    harness.engine.hold()
    for call in (*others[:3], killer, *others[3:]):
        harness.scheduler.submit(call)
    await settle()
    harness.engine.released.set()
    await harness.scheduler.wait_idle()
    assert killer.state is CallState.FAILED
    assert killer.failure is not None
    assert "second attempt" in killer.failure.message
    assert [call.state for call in others] == [CallState.DONE] * 6
    assert len(harness.engine.opened) == 2 * 7, "each call got one more attempt"


async def test_calls_without_an_engine_fail_with_engine_unavailable() -> None:
    harness = SchedulerHarness()
    harness.engine.is_ready = False
    call = harness.run()
    await call.output.wait_final()
    assert call.failure is not None
    assert call.failure.code == "engine_unavailable"


async def test_a_finished_slot_is_not_generated_again_by_another_attempt() -> None:
    harness = SchedulerHarness()
    segments = [Text([1, 2]), slot("a"), Text([9] * 20), ANSWER]
    harness.engine.deaths = 1
    call = submit(harness, CallSpec(model="m", segments=segments, output="out", deferred=True))
    await harness.scheduler.wait_idle()
    assert (harness.session.variable("a").value, call.output.value) == ("2", "23")
    assert [context.generates for context in harness.engine.opened] == [2, 1]


async def test_without_fill_ahead_a_prompt_is_filled_once_all_values_exist() -> None:
    harness = SchedulerHarness()
    harness.scheduler = Scheduler(FakeEngines(harness.engine), 10, fill_ahead=False)
    harness.session.add_variable("later")
    call = harness.run("later")
    await settle()
    assert (call.state, harness.engine.opened) == (CallState.WAITING, [])
    harness.session.set_values(harness.session.add_variable("later", "xyz"))
    await call.output.wait_final()
    assert call.output.value == "5"


async def test_a_call_that_lost_its_engine_runs_on_another_one() -> None:
    lost, healthy = FakeEngine(name="ill"), FakeEngine(name="well")
    scheduler = Scheduler(FakeEngines(lost, healthy), 10)
    call = session().add(spec(output="out"))
    lost.doomed = {call.spec.segments[0].tokens[0]} if isinstance(call.spec.segments[0], Text) else set()
    scheduler.submit(call)
    await call.output.wait_final()
    assert (call.state, call.engine) == (CallState.DONE, "well")
    assert len(lost.opened) == 1, "the lost engine is not used again while another one is ready"
    await scheduler.close()


async def test_fallback_models_are_tried_in_order() -> None:
    class FirstModelDown(FakeEngines):
        async def find_ready(self, model: str, *, wait: bool = True) -> Sequence[Engine]:
            requested.append((model, wait))
            if model == "first":
                raise NoEngine("it is down")
            return self.engines

    requested: list[tuple[str, bool]] = []
    engine = FakeEngine()
    scheduler = Scheduler(FirstModelDown(engine), 10)
    segments: list[Segment] = [Text([1] * 12), ANSWER]
    graph = session()
    call = graph.add(
        CallSpec(
            model="first",
            segments=[Text([1, 2]), ANSWER],
            output="out",
            deferred=True,
            fallbacks=(Rendering("second", segments), Rendering("third", segments)),
        )
    )
    scheduler.submit(call)
    await call.output.wait_final()
    assert (call.state, call.output.value, call.model) == (CallState.DONE, "12", "second")
    assert requested == [("first", False), ("second", False)], "the scheduler waits only for the last model"
    await scheduler.close()


class ScriptedEngine(FakeEngine):
    """Engine whose next generations raise the given errors."""

    def __init__(self, *errors: Exception, name: str = "fake") -> None:
        super().__init__(name=name)
        self.errors = list(errors)

    def open(self, scope: str, urgency: Urgency, traceparent: str = "") -> FakeContext:
        context = super().open(scope, urgency, traceparent)
        if self.errors:
            context.generate = partial(self._fail, self.errors.pop(0))  # type: ignore[method-assign]
        return context

    async def _fail(self, error: Exception, *arguments: object, **options: object) -> None:
        raise error


class ModelEngines(FakeEngines):
    """One engine for each model."""

    def __init__(self, **engines: FakeEngine) -> None:
        super().__init__(*engines.values())
        self.by_model = engines

    async def find_ready(self, model: str, *, wait: bool = True) -> Sequence[Engine]:
        if model not in self.by_model:
            raise NoEngine(f"no engine of {model} is ready")
        return [self.by_model[model]]


async def ended(engines: FakeEngines, call: Call) -> Call:
    scheduler = Scheduler(engines, 10)
    scheduler.submit(call)
    async with asyncio.timeout(10):
        await scheduler.wait_idle()
    assert all(engine.load == 0 for engine in engines.engines), "every context was freed"
    return call


def with_fallback(**more: Any) -> Call:
    segments = [Text([1] * 12), ANSWER]
    fallback = Rendering("second", [Text([1] * 345), ANSWER])
    return session().add(CallSpec(model="first", segments=segments, deferred=True, fallbacks=[fallback], **more))


async def test_a_call_gets_three_attempts_if_others_lose_its_engine() -> None:
    busy = [EngineLost("it restarts", suspect=False) for _ in range(3)]
    call = await ended(FakeEngines(ScriptedEngine(*busy[:2])), session().add(spec(deferred=True)))
    assert (call.state, call.output.value) == (CallState.DONE, "2")
    engine = ScriptedEngine(*busy)
    call = await ended(FakeEngines(engine), session().add(spec(deferred=True)))
    assert call.failure == Failure("engine_failed", "it restarts; that was attempt 3 of 3", call.id)
    assert len(engine.opened) == 3


async def test_a_busy_engine_is_asked_again_after_its_pause_and_keeps_its_code() -> None:
    busy = [EngineBusy("no capacity", suspect=False, pause=0.05) for _ in range(3)]
    began = asyncio.get_running_loop().time()
    call = await ended(FakeEngines(ScriptedEngine(*busy)), session().add(spec(deferred=True)))
    assert call.failure is not None
    assert call.failure.code == "engine_overloaded"
    assert asyncio.get_running_loop().time() - began >= 2 * 0.05


async def test_another_engine_is_tried_without_a_pause() -> None:
    busy = ScriptedEngine(EngineBusy("no capacity", suspect=False, pause=60.0), name="busy")
    other = FakeEngine(name="other")
    other.load = 5
    scheduler, call = Scheduler(FakeEngines(busy, other), 10), session().add(spec(deferred=True))
    scheduler.submit(call)
    async with asyncio.timeout(10):
        await scheduler.wait_idle()
    assert (call.state, call.engine) == (CallState.DONE, "other")


async def test_a_fallback_model_answers_if_the_first_one_would_need_a_long_pause() -> None:
    first = ScriptedEngine(EngineBusy("no capacity", suspect=False, pause=60.0))
    call = await ended(ModelEngines(first=first, second=FakeEngine()), with_fallback())
    assert (call.state, call.model, call.output.value) == (CallState.DONE, "second", "345")
    assert call.usage.prompt == 345, "tokens of the first attempt do not count"


async def test_a_fallback_model_gets_no_call_that_the_engine_refused_or_that_killed_engines() -> None:
    refused = ContextRefused("invalid_request", "no such grammar", "response_format")
    for error, code in ((refused, "invalid_request"), (EngineLost("it died"), "engine_failed")):
        second = FakeEngine()
        call = await ended(ModelEngines(first=ScriptedEngine(error, error), second=second), with_fallback())
        assert call.failure is not None
        assert (call.failure.code, second.opened) == (code, [])


async def test_an_exposed_answer_is_not_continued_by_another_model() -> None:
    first, second = FakeEngine(), FakeEngine()
    first.deaths = 1
    call = with_fallback()
    scheduler = Scheduler(ModelEngines(first=first, second=second), 10)
    scheduler.submit(call)
    with call.session.read(call.output) as reader:
        assert [piece.text for piece in await reader.next_pieces()] == ["1"]
    await scheduler.wait_idle()
    assert (call.state, second.opened) == (CallState.FAILED, [])


@pytest.mark.parametrize(
    ("error", "more", "where"),
    [
        (ContextRefused("context_length_exceeded", "too long"), {"where": "calls.1"}, "calls.1.messages"),
        (ContextRefused("context_length_exceeded", "too long", "seed"), {"prompt_field": "prompt"}, "prompt"),
        (ContextRefused("invalid_request", "no", "seed"), {"where": "calls.1"}, "calls.1.seed"),
        (ContextRefused("invalid_request", "no"), {}, None),
        (ContextRefused("invalid_request", "no", "seed"), {"segments": [Text([1]), slot("a"), ANSWER]}, None),
    ],
)
async def test_a_failure_names_the_field_of_the_request(
    error: Exception, more: dict[str, Any], where: str | None
) -> None:
    fields: dict[str, Any] = {"model": "m", "segments": [Text([1]), ANSWER], "deferred": True} | more
    call = await ended(FakeEngines(ScriptedEngine(error)), session().add(CallSpec(**fields)))
    assert call.failure is not None
    assert call.failure.field == where


async def test_an_error_of_the_server_fails_only_its_call(caplog: pytest.LogCaptureFixture) -> None:
    engine = ScriptedEngine(ZeroDivisionError("oops"))
    graph = session()
    call = await ended(FakeEngines(engine), graph.add(spec(deferred=True)))
    assert call.failure == Failure("internal_error", "internal error: ZeroDivisionError('oops')", call.id)
    assert f"call {call.id} failed with an internal error" in caplog.text
    assert (await ended(FakeEngines(engine), graph.add(spec(deferred=True)))).state is CallState.DONE


async def test_a_call_whose_input_has_failed_opens_no_context() -> None:
    graph, engine = session(), FakeEngine()
    graph.add_variable("a")
    call = graph.add(spec("a", deferred=True))
    graph.variable("a").fail(Failure("engine_failed", "lost"))
    await ended(FakeEngines(engine), call)
    assert call.failure is not None
    assert (call.failure.code, engine.opened) == ("upstream_failed", [])


async def test_engines_learn_changed_urgencies_once_in_a_turn() -> None:
    harness = SchedulerHarness()
    harness.engine.hold()
    call = harness.run(output="a")
    await settle()
    (context,) = harness.engine.opened
    urgencies: list[Urgency] = []
    context.rerank = urgencies.append  # type: ignore[method-assign]
    for _ in range(3):
        harness.scheduler.subscribe(call.output)
    assert urgencies == []
    await settle()
    assert [urgency.interactive for urgency in urgencies] == [True]
    harness.engine.released.set()
    await harness.scheduler.wait_idle()
    harness.scheduler.unsubscribe(call.output)
    await settle()
    assert len(urgencies) == 1, "a call that has ended has no context"


async def test_failed_attempts_are_recorded_with_their_times() -> None:
    engine = ScriptedEngine(EngineLost("it restarts", suspect=False, pause=0.05), name="first")
    call = session().add(spec(deferred=True))
    assert (await ended(FakeEngines(engine), call)).state is CallState.DONE
    (failed,) = call.failed_attempts
    assert (failed.engine, failed.model, failed.code) == ("first", call.spec.model, "engine_failed")
    assert failed.times.created == call.times.created
    assert failed.times.finished is not None
    assert failed.times.first_token is None
    assert call.times.started is not None
    assert call.times.started >= failed.times.finished, "the times are those of the last attempt"
    assert call.times.queued is not None


async def test_times_of_a_lost_answer_do_not_count() -> None:
    harness = SchedulerHarness()
    harness.engine.deaths = 1
    call = harness.session.add(dataclasses.replace(spec(deferred=True), segments=[Text([1] * 12), ANSWER]))
    harness.scheduler.submit(call)
    await harness.scheduler.wait_idle()
    (failed,) = call.failed_attempts
    assert failed.times.first_token is not None
    assert failed.times.finished is not None
    assert call.times.first_token is not None
    assert call.times.first_token >= failed.times.finished


async def test_models_without_an_engine_are_failed_attempts() -> None:
    first = ScriptedEngine(EngineBusy("no capacity", suspect=False, pause=60.0))
    call = await ended(ModelEngines(first=first, second=FakeEngine()), with_fallback())
    assert [(failed.engine, failed.model, failed.code) for failed in call.failed_attempts] == [
        ("fake", "first", "engine_overloaded")
    ]
    call = await ended(ModelEngines(second=FakeEngine()), with_fallback())
    assert [(failed.engine, failed.model, failed.code) for failed in call.failed_attempts] == [
        (None, "first", "engine_unavailable")
    ]
    assert (call.engine, call.model) == ("fake", "second")


async def test_calls_without_retries_have_no_failed_attempts() -> None:
    call = await ended(FakeEngines(FakeEngine()), session().add(spec(deferred=True)))
    assert call.failed_attempts == ()


def test_few_failed_attempts_are_recorded() -> None:
    call = session().add(spec(deferred=True))
    for _ in range(100):
        call.engine = "e"
        assert _reset(call, "m", "producer_restarted")
    assert len(call.failed_attempts) == 15
    assert (call.engine, call.model) == (None, None)


async def test_a_program_stays_on_its_engine_and_moves_when_the_engine_loses_a_call() -> None:
    engines = [FakeEngine(name=name) for name in ("one", "two")]
    scheduler = Scheduler(FakeEngines(*engines), 100)

    async def run(call: Call) -> str | None:
        scheduler.submit(call)
        await scheduler.wait_idle()
        assert call.state is CallState.DONE
        return call.engine

    def turn(member: ProgramMember | None, prompt: int) -> Call:
        call = plain_call(prompt, "a")
        call.program = Member(call.id, "a", member)  # type: ignore[arg-type]
        return call

    first = turn(None, 200)
    assert await run(first) == "one"
    engines[0].load = 3
    second = turn(first.program, 300)
    assert await run(second) == "one"
    assert await run(plain_call(5, "a")) == "one", "a sub-agent"
    assert await run(plain_call(5, "b")) == "two", "another program"
    engines[0].deaths = 1
    third = turn(second.program, 400)
    assert await run(third) == "two"
    engines[0].load, engines[1].load = 0, 3
    assert await run(turn(third.program, 500)) == "two"
    assert await run(plain_call(5, "a")) == "two"
    scheduler.forget_program("a")
    assert await run(plain_call(5, "a")) == "one"
    await scheduler.close()
