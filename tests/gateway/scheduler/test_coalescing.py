"""Tests of gateway/scheduler/coalescing.py: identical calls run once."""

import dataclasses

from gateway.graph.call import CallSpec, CallState
from gateway.graph.segments import Text
from tests.gateway.scheduler.scheduler_harness import GREEDY, SchedulerHarness, settle, submit


async def test_identical_calls_run_once_and_live_while_one_has_a_subscriber() -> None:
    harness = SchedulerHarness()
    harness.engine.hold()
    greedy = CallSpec(model="m", segments=[Text([1] * 33), GREEDY])
    first, second = submit(harness, greedy), submit(harness, greedy)
    interactive = submit(harness, dataclasses.replace(greedy, share=False, deferred=True))
    other = submit(harness, dataclasses.replace(greedy, segments=[Text([2] * 33), GREEDY], deferred=True))
    for call in (first, second):
        harness.scheduler.subscribe(call.output)
    await settle()
    assert second.leader is first
    harness.scheduler.unsubscribe(first.output)
    assert not first.state.is_final, "it serves the second call"
    harness.engine.released.set()
    await harness.scheduler.wait_idle()
    late = submit(harness, dataclasses.replace(greedy, deferred=True))
    await harness.scheduler.wait_idle()
    assert [call.output.value for call in (first, second, interactive, other, late)] == ["33"] * 5
    assert sum(context.generates for context in harness.engine.opened) == 3
    assert harness.session.usage()["calls_shared"] == 2
    assert harness.session.usage()["calls_run"] == 3


async def test_a_shared_call_is_cancelled_with_its_last_subscriber() -> None:
    harness = SchedulerHarness()
    harness.engine.hold()
    greedy = CallSpec(model="m", segments=[Text([1] * 33), GREEDY])
    first, second = submit(harness, greedy), submit(harness, greedy)
    for call in (first, second):
        harness.scheduler.subscribe(call.output)
    await settle()
    harness.scheduler.unsubscribe(first.output)
    harness.scheduler.unsubscribe(second.output)
    await harness.scheduler.wait_idle()
    assert first.state is second.state is CallState.CANCELLED
    assert harness.engine.load == 0
