"""gateway/simulator/agents/policies/sglang.py: the longest cached prefix goes first."""

from gateway.simulator.agents.policies.sglang import SglangPolicy
from tests.gateway.simulator.agents.policies.harness import FACTS, PolicyHarness


def test_the_longest_cached_prefix_goes_first() -> None:
    harness = PolicyHarness(SglangPolicy(FACTS))
    short, long = harness.serve(harness.call(1, 500)), harness.serve(harness.call(2, 900))
    calls = harness.call(0, 3000), harness.next(short, 3000), harness.next(long, 3000)
    assert harness.order(*calls) == [2, 1, 0]


def test_room_for_a_part_of_the_answer_is_needed() -> None:
    harness = PolicyHarness(SglangPolicy(FACTS), capacity=1500)
    assert harness.admits(harness.call(0, 900))
    assert not harness.admits(harness.call(1, 1000))
