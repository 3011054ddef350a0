"""gateway/simulator/agents/policies/continuum.py: times to live from earlier durations, and what they protect."""

from gateway.simulator.agents.policies.continuum import ContinuumPolicy
from tests.gateway.simulator.agents.policies.harness import FACTS, PolicyHarness


def taught(seconds: float, capacity: int = FACTS.capacity) -> PolicyHarness:
    """Return a harness whose policy has learned that tools take so many seconds."""
    harness = PolicyHarness(ContinuumPolicy(FACTS), capacity)
    for session in range(100, 120):
        call = harness.serve(harness.call(session, 10), 0.0)
        harness.now += seconds
        harness.serve(harness.next(call, 20), 0.0)
        harness.policy.leave(session, harness.now)
    return harness


def test_kv_is_retained_for_as_long_as_tools_take() -> None:
    harness = taught(2.0)
    retained = harness.serve(harness.call(0, 5000))
    other = harness.serve(harness.call(1, 1000, stop="end_turn"), 1.0)
    assert other.chain[0] == 1
    assert not harness.admits(harness.call(2, 6000))
    assert harness.policy.select({retained.path[-1]: None, other.path[-1]: None}, harness.now) is other.path[-1]
    harness.now += 1.5
    assert harness.admits(harness.call(3, 6000))


def test_kv_is_not_retained_for_tools_that_take_longer_than_computing_it_again() -> None:
    harness = taught(60.0)
    harness.serve(harness.call(0, 5000))
    assert harness.admits(harness.call(2, 6000))


def test_programs_run_in_the_order_of_their_arrival_and_retained_ones_first() -> None:
    harness = taught(2.0)
    first = harness.serve(harness.call(0, stop="end_turn"))
    second = harness.call(1)
    third = harness.serve(harness.call(2, 5000))
    harness.now += 1.0
    assert harness.order(second, harness.next(third, 5100), harness.next(first, 1100)) == [2, 0, 1]
