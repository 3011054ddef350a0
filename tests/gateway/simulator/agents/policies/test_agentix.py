"""gateway/simulator/agents/policies/agentix.py: least attained service of programs, in levels, without starvation."""

from gateway.simulator.agents.policies.agentix import AgentixPolicy
from tests.gateway.simulator.agents.policies.harness import FACTS, PolicyHarness


def test_programs_with_little_service_go_first() -> None:
    harness = PolicyHarness(AgentixPolicy(FACTS))
    long, short = harness.serve(harness.call(0), 50.0), harness.serve(harness.call(1), 3.0)
    assert harness.order(harness.next(long, 1100), harness.next(short, 1100), harness.call(2)) == [2, 1, 0]


def test_programs_of_one_level_run_in_the_order_of_arrival() -> None:
    harness = PolicyHarness(AgentixPolicy(FACTS))
    more, less = harness.serve(harness.call(0), 7.0), harness.serve(harness.call(1), 5.0)
    assert harness.order(harness.next(more, 1100), harness.next(less, 1100)) == [0, 1]


def test_a_call_that_waited_for_long_moves_up() -> None:
    harness = PolicyHarness(AgentixPolicy(FACTS))
    waiting = harness.next(harness.serve(harness.call(0), 50.0), 1100)
    harness.now += 501.0
    assert harness.order(harness.call(1), waiting) == [0, 1]


def test_a_program_that_left_is_forgotten() -> None:
    harness = PolicyHarness(AgentixPolicy(FACTS))
    harness.serve(harness.call(0), 50.0)
    harness.policy.leave(0, harness.now)
    assert harness.order(harness.call(1), harness.call(0)) == [1, 0]
