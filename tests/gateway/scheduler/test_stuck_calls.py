"""Tests of gateway/scheduler/stuck_calls.py: calls that can make no progress are ended."""

import asyncio

import pytest

from gateway.graph.call import Call, CallState
from gateway.graph.session import Session
from gateway.scheduler.stuck_calls import StuckCallDetector
from tests.gateway.graph.test_session import session, spec
from tests.gateway.scheduler.scheduler_harness import SchedulerHarness, settle


async def test_stuck_calls_fail_and_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    harness = SchedulerHarness()
    harness.session.add_variable("declared")
    waits = harness.run("declared", output="a")
    reader = harness.run("a", output="b")
    await settle()
    assert harness.scheduler.end_stuck([harness.session]) == [], "a client may set the variable"
    other = harness.session.add(spec(deferred=True))  # as if the scheduler had never started it
    assert harness.scheduler.end_stuck([harness.session]) == [], "it may be about to start"
    assert harness.scheduler.end_stuck([harness.session]) == [other]
    waits.inputs["declared"].producer = reader  # as if the graph had accepted a cycle
    waits.awaits = waits.inputs["declared"]
    (first, *_) = harness.scheduler.end_stuck([harness.session])
    assert first in (waits, reader)
    await harness.scheduler.wait_idle()
    for call in (waits, reader, other):
        assert call.state is CallState.FAILED
        assert call.failure is not None
        assert call.failure.code in ("internal_error", "upstream_failed")
    assert "waits for 'declared', which gets no value" in caplog.text
    assert "has no coroutine" in caplog.text


async def test_calls_that_are_about_to_be_submitted_are_not_stuck() -> None:
    harness = SchedulerHarness()
    harness.session.add_variable("declared")
    addition = harness.session.add_all([spec("declared", deferred=True) for _ in range(200)])
    starting = asyncio.create_task(harness.scheduler.start(harness.session, addition))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert 0 < harness.scheduler.unfinished_calls < 200, "submitted in slices"
    for _ in range(3):
        assert harness.scheduler.end_stuck([harness.session]) == []
    await starting
    assert harness.scheduler.end_stuck([harness.session]) == []
    await harness.scheduler.close()


def waiting_call(graph: Session) -> Call:
    """Return a call whose coroutine waits for a variable that a client may set."""
    if "late" not in graph.variables:
        graph.add_variable("late")
    call = graph.add(spec("late"))
    call.awaits = call.inputs["late"]
    return call


def test_a_call_that_waits_for_a_client_is_not_stuck() -> None:
    graph = session()
    call = waiting_call(graph)
    detector = StuckCallDetector(lambda id: True)
    for _ in range(3):
        assert detector.find([call], [graph]) == []
    graph.remove_name(call.inputs["late"])  # as while a session is restored
    assert detector.find([call], [graph]) == [(call, "waits for 'late', which gets no value")]


def test_a_call_without_a_task_is_stuck_when_it_is_seen_twice_in_a_row() -> None:
    graph, started = session(), set[str]()
    detector = StuckCallDetector(started.__contains__)
    one, other = graph.add(spec()), graph.add(spec())
    assert detector.find([], [graph]) == []
    started.add(one.id)
    assert detector.find([], [graph]) == [(other, "has no coroutine")]
    started.clear()
    assert detector.find([], [graph]) == [(other, "has no coroutine")], "the first call had a task in between"
    other.set_state(CallState.DONE)
    assert detector.find([], [graph]) == [(one, "has no coroutine")]


def test_ended_sessions_and_calls_are_not_searched() -> None:
    graph, closed = session(), session()
    graph.add(spec()).set_state(CallState.DONE)
    closed.add(spec())
    closed.is_closed = True
    detector = StuckCallDetector(lambda id: False)
    for _ in range(2):
        assert detector.find([], [graph, closed]) == []
