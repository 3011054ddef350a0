"""Tests of gateway/scheduler/execution.py: engines, attempts and fallback models of calls."""

import dataclasses
from collections.abc import Sequence

from gateway.engines.protocol import Engine, NoEngine
from gateway.graph.call import CallSpec, CallState, Rendering
from gateway.graph.segments import Segment, Text
from gateway.scheduler import Scheduler
from tests.fakes.engine import FakeEngine, FakeEngines
from tests.gateway.graph.test_session import session, spec
from tests.gateway.scheduler.scheduler_harness import ANSWER, SchedulerHarness, settle, slot, submit


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
