"""gateway/api/semantic/time_spent.py: the phases of a call from the events of its session."""

import pytest

from gateway.api.semantic.time_spent import PHASES, time_spent
from gateway.graph.call import Call, CallState
from gateway.graph.limits import SessionLimits
from gateway.graph.session import Session
from tests.gateway.graph.test_session import spec


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def session(clock: Clock) -> Session:
    return Session(id="s", tenant="t", created=100.0, ttl=60.0, limits=SessionLimits(), clock=clock)


def run(call: Call, clock: Clock, **seconds: float) -> None:
    """Move a call through its states; `seconds`: how long it is in each."""
    for name, duration in seconds.items():
        state = CallState(name)
        if call.state is not state:
            call.set_state(state)
        clock.time += duration
    call.set_state(CallState.DONE)
    call.conclude()


def test_phases_follow_from_the_states(session: Session, clock: Clock) -> None:
    call = session.add(spec(output="a"))
    call.times.held, call.times.starved = 0.5, 0.25
    run(call, clock, waiting=1.0, queued=2.0, prefill=4.0, decode=8.0)
    expected = {"inputs": 1.0, "tool": 0.0, "queue": 2.5, "memory": 0.25, "prompt": 3.25, "answer": 8.0}
    assert time_spent(session, [call]) == {call.id: pytest.approx(expected)}
    assert set(PHASES) == set(expected)


def test_the_wait_for_a_value_that_only_a_client_sets_is_a_wait_for_a_tool(session: Session, clock: Clock) -> None:
    first = session.add(spec(output="a"))
    session.add_variable("result")
    second = session.add(spec("a", "result", output="b"))
    run(first, clock, waiting=1.0, decode=2.0)  # second waits for a call, whether or not the client is late as well
    clock.time += 4.0
    session.variable("result").set("x")
    run(second, clock, waiting=0.0, decode=1.0)
    spent = time_spent(session, [first, second])
    assert (spent[second.id]["inputs"], spent[second.id]["tool"]) == pytest.approx((3.0, 4.0))
    assert (spent[first.id]["inputs"], spent[first.id]["tool"]) == pytest.approx((1.0, 0.0))


def test_a_client_that_is_early_causes_no_wait(session: Session, clock: Clock) -> None:
    session.add_variable("result")
    first = session.add(spec(output="a"))
    second = session.add(spec("a", "result", output="b"))
    session.variable("result").set("x")
    run(first, clock, waiting=1.0, decode=2.0)
    run(second, clock, waiting=0.0, decode=1.0)
    spent = time_spent(session, [second])[second.id]
    assert (spent["inputs"], spent["tool"]) == pytest.approx((3.0, 0.0))


def test_only_the_calls_that_were_asked_for_are_measured(session: Session, clock: Clock) -> None:
    first, second = session.add(spec(output="a")), session.add(spec(output="b"))
    run(first, clock, decode=1.0)
    assert set(time_spent(session, [second])) == {second.id}
