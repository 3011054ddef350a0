"""Tests of gateway/scheduler/cancellation.py: how calls end, and which calls end with them."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.graph.call import CallState
from gateway.graph.errors import Failure
from gateway.graph.segments import Text
from gateway.graph.variable import VariableState
from gateway.scheduler.cancellation import Cancellation
from tests.gateway.graph.test_session import session, spec
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


class RecordingCancellation(Cancellation):
    """Cancellation that records what it observes and aborts."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, str, bool]] = []
        super().__init__(
            lambda call: self.steps.append(("abort", call.output.name, call.output.state.is_final)),
            lambda call: self.steps.append(("observe", call.output.name, call.output.state.is_final)),
        )

    @property
    def aborted(self) -> list[str]:
        return [name for step, name, _ in self.steps if step == "abort"]


LOST = Failure("engine_failed", "the engine was lost", "call_1")


def test_a_call_ends_once() -> None:
    graph, cancellation = session(), RecordingCancellation()
    call = graph.add(spec(output="a"))
    cancellation.end(call, CallState.DONE, None)
    cancellation.end(call, CallState.FAILED, LOST)
    cancellation.cancel(call, LOST)
    assert (call.state, call.failure, call.output.state) == (CallState.DONE, None, VariableState.READY)
    assert call.times.finished is not None
    assert cancellation.steps == [("observe", "a", True), ("abort", "a", True)], "its outputs are final then"


@pytest.mark.parametrize(("state", "word"), [(CallState.FAILED, "failed"), (CallState.CANCELLED, "was cancelled")])
def test_consumers_fail_with_the_first_cause(state: CallState, word: str) -> None:
    graph, cancellation = session(), RecordingCancellation()
    first, second, third, other = (
        graph.add(spec(*reads, output=name)) for reads, name in (((), "a"), (("a",), "b"), (("b", "a"), "c"), ((), "d"))
    )
    cancellation.end(first, state, LOST)
    assert (first.state, first.failure) == (state, LOST)
    message = f"variable 'a' {word} (call call_1, engine_failed): the engine was lost"
    for call in (second, third):
        assert call.state is CallState.FAILED
        assert call.failure == Failure("upstream_failed", message, "call_1")
    assert other.state is CallState.WAITING
    assert sorted(cancellation.aborted) == ["a", "b", "c"], "each once"


def test_long_chains_of_calls_end_together() -> None:
    graph, cancellation = session(depth=5_000, calls=10_000), RecordingCancellation()
    names = [f"v{number}" for number in range(3_000)]
    calls = graph.add_all(
        [spec(*names[max(0, number - 1) : number], output=name) for number, name in enumerate(names)]
    ).calls
    released = graph.add_all(
        [spec(*([f"r{number - 1}"] if number else []), output=f"r{number}") for number in range(3_000)]
    ).calls
    cancellation.end(calls[0], CallState.FAILED, LOST)
    cancellation.release(released[-1])
    assert {call.state for call in calls} == {CallState.FAILED}
    assert {call.state for call in released} == {CallState.CANCELLED}


def test_in_an_ended_session_no_failure_spreads() -> None:
    graph, cancellation = session(), RecordingCancellation()
    first, second = graph.add(spec(output="a")), graph.add(spec("a", output="b"))
    graph.is_closed = True
    cancellation.end(first, CallState.FAILED, LOST)
    assert second.state is CallState.WAITING, "the session's end cancels each of its calls itself"


def test_a_released_variable_without_a_producer_fails_its_consumers_if_it_failed() -> None:
    graph, cancellation = session(), RecordingCancellation()
    graph.add_variable("a")
    variable = graph.variable("a")
    reader = graph.add(spec("a", output="b"))
    cancellation.release_variable(variable)
    assert reader.state is CallState.WAITING, "a client may still set the value"
    variable.fail(LOST)
    cancellation.release_variable(variable)
    assert reader.state is CallState.FAILED
    assert reader.failure is not None
    assert reader.failure.code == "upstream_failed"


@given(
    reads=st.lists(st.sets(st.integers(0, 7), max_size=3), min_size=1, max_size=8),
    deferred=st.sets(st.integers(0, 7), max_size=2),
    subscribed=st.sets(st.integers(0, 7), max_size=2),
    start=st.integers(0, 7),
)
def test_release_cancels_the_call_and_those_of_its_ancestors_that_nothing_else_needs(
    reads: list[set[int]], deferred: set[int], subscribed: set[int], start: int
) -> None:
    count = len(reads)
    sources = [{source for source in reads[call] if source < call} for call in range(count)]
    graph, cancellation = session(), RecordingCancellation()
    calls = [
        graph.add(
            spec(*(f"v{source}" for source in sorted(sources[call])), output=f"v{call}", deferred=call in deferred)
        )
        for call in range(count)
    ]
    for call in subscribed & set(range(count)):
        calls[call].output.subscribers += 1
    start %= count
    ancestors = {start}
    for call in range(start, -1, -1):
        if call in ancestors:
            ancestors |= sources[call]
    unneeded = ancestors - deferred - subscribed
    while kept := {
        call for call in unneeded if any(call in sources[reader] and reader not in unneeded for reader in range(count))
    }:
        unneeded -= kept
    cancellation.release(calls[start])
    expected = unneeded if start in unneeded else set()
    assert {int(name[1:]) for name in cancellation.aborted} == expected
    assert len(cancellation.aborted) == len(expected)
    for call in expected:
        failure = calls[call].failure
        assert failure is not None
        assert failure.code in ("cancelled", "upstream_failed")
