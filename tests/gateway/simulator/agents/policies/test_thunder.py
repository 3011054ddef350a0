"""gateway/simulator/agents/policies/thunder.py: programs pause when their KV does not fit, and the smallest returns."""

from gateway.simulator.agents.policies.thunder import ThunderPolicy
from tests.gateway.simulator.agents.policies.harness import FACTS, PolicyHarness


def test_a_program_that_does_not_fit_next_to_active_ones_waits() -> None:
    harness = PolicyHarness(ThunderPolicy(FACTS))
    active = harness.serve(harness.call(0, 6000))
    newcomer = harness.call(1, 5000)
    assert not harness.admits(newcomer)
    assert harness.admits(harness.next(active, 6100))
    harness.now += 120.0  # a program that is in its tool for long counts less
    assert harness.admits(newcomer)


def test_the_smallest_program_in_a_tool_pauses() -> None:
    harness = PolicyHarness(ThunderPolicy(FACTS), capacity=20_000)
    calls = [harness.serve(harness.call(session, prompt), 0.0) for session, prompt in enumerate((2000, 3000, 6000))]
    harness.now += 1.0
    small, middle, large = (harness.next(call, call.length + 100) for call in calls)
    assert harness.order(large, middle, small) == [1, 2, 0]  # arrival of active ones, then the paused one
    assert harness.admits(middle)
    assert harness.admits(large)
    assert not harness.admits(small)


def test_paused_programs_return_smallest_first_and_are_evicted_first() -> None:
    harness = PolicyHarness(ThunderPolicy(FACTS), capacity=20_000)
    harness.serve(harness.call(0, 2000), 0.0)
    harness.serve(harness.call(1, 9000))
    assert harness.victim() == 0
    assert harness.order(harness.call(2, 3000), harness.call(3, 500)) == [3, 2]
    harness.policy.leave(1, harness.now)
    assert harness.admits(harness.call(4, 9000))
