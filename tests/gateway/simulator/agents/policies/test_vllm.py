"""gateway/simulator/agents/policies/vllm.py: first come, first served; least recently used."""

from gateway.simulator.agents.policies.vllm import VllmPolicy
from tests.gateway.simulator.agents.policies.harness import FACTS, PolicyHarness


def test_calls_run_in_the_order_of_arrival_whatever_is_cached() -> None:
    harness = PolicyHarness(VllmPolicy(FACTS))
    first = harness.serve(harness.call(0))
    other = harness.call(1)
    assert harness.order(harness.next(first, 1100), other) == [1, 0]
    assert harness.admits(other)


def test_the_least_recently_used_prompt_is_evicted_first() -> None:
    harness = PolicyHarness(VllmPolicy(FACTS))
    calls = [harness.serve(harness.call(session)) for session in range(3)]
    assert harness.victim() == 0
    harness.serve(harness.next(calls[0], 1100))
    assert harness.victim() == 1
