"""Tests of gateway/scheduler/cancellation.py: how calls end, and which calls end with them."""

import dataclasses

from gateway.graph.call import CallState
from gateway.graph.segments import Text
from gateway.graph.variable import VariableState
from tests.gateway.graph.test_session import spec
from tests.gateway.scheduler.scheduler_harness import ANSWER, SchedulerHarness, settle


async def test_a_failure_reaches_descendants_with_its_root_cause_and_spares_siblings() -> None:
    harness = SchedulerHarness()
    failing = harness.run(output="a")
    child, grandchild = harness.run("a", output="b"), harness.run("b")
    harness.engine.doomed = {1, 2}  # the first tokens of its prompt
    sibling = harness.session.add(dataclasses.replace(spec(deferred=True), segments=[Text([3]), ANSWER]))
    harness.scheduler.submit(sibling)
    await harness.scheduler.wait_idle()
    assert failing.state is CallState.FAILED
    assert failing.output.failure is not None
    assert failing.output.failure.code == "engine_failed"
    for call in (child, grandchild):
        assert call.state is CallState.FAILED
        assert call.failure is not None
        assert call.failure.code == "upstream_failed"
        assert call.failure.call == failing.id
        assert "the fake engine was lost" in call.failure.message
    assert sibling.state is CallState.DONE


async def test_unsubscribing_cancels_calls_that_are_not_needed_any_more() -> None:
    harness = SchedulerHarness()
    harness.engine.hold()
    unneeded = harness.run(output="a", deferred=False)
    kept = harness.run(output="k", deferred=True)
    call = harness.run("a", "k", output="b", deferred=False)
    harness.scheduler.subscribe(call.output)
    await settle()
    harness.scheduler.unsubscribe(call.output)
    assert (call.state, unneeded.state, kept.state) == (CallState.CANCELLED, CallState.CANCELLED, CallState.PREFILL)
    assert [context.freed for context in harness.engine.opened] == [True, False, True]
    harness.engine.released.set()
    await harness.scheduler.wait_idle()
    assert kept.state is CallState.DONE


async def test_a_call_runs_while_it_has_a_subscriber() -> None:
    harness = SchedulerHarness()
    harness.engine.hold()
    call = harness.run(deferred=False)
    for _ in range(2):
        harness.scheduler.subscribe(call.output)
    await settle()
    harness.scheduler.unsubscribe(call.output)
    assert not call.state.is_final
    harness.engine.released.set()
    await call.output.wait_final()
    harness.scheduler.unsubscribe(call.output)
    assert call.state is CallState.DONE


async def test_a_call_can_be_cancelled_before_its_coroutine_first_runs() -> None:
    harness = SchedulerHarness()
    call = harness.run()
    harness.session.close(harness.scheduler.cancel)
    await harness.scheduler.wait_idle()
    assert call.state is CallState.CANCELLED
    assert call.output.state is VariableState.CANCELLED


async def test_deleting_a_variable_fails_its_consumers_and_cancels_its_producer() -> None:
    harness = SchedulerHarness()
    harness.engine.hold()
    harness.session.add_variable("never")
    waiting = harness.run("never")
    running = harness.run(output="a")
    await settle()
    for name in ("never", "a"):
        harness.scheduler.release(harness.session.delete(name))
    await settle()
    assert running.state is CallState.CANCELLED
    assert waiting.failure is not None
    assert waiting.failure.code == "upstream_failed"
    harness.session.add_variable("a")
