"""gateway/simulator/agents/policies/belady.py: the furthest next use is evicted first."""

from gateway.simulator.agents.call import AgentCall
from gateway.simulator.agents.kv_pool import build_paths
from gateway.simulator.agents.policies.belady import BeladyPolicy
from tests.gateway.simulator.agents.policies.harness import FACTS, PolicyHarness
from tests.gateway.simulator.agents.synthetic import chain


def test_the_furthest_next_use_goes_first_and_what_is_never_used_before_all() -> None:
    sessions = [chain(500, 600, pause=5.0), chain(500, 600, pause=90.0), chain(500)]
    paths = build_paths(sessions)
    policy = BeladyPolicy(FACTS)
    policy.prepare(sessions, paths, [0.0, 0.0, 0.0])
    harness = PolicyHarness(policy)
    for number, session in enumerate(sessions):
        harness.serve(harness.arrive(AgentCall(number, 0, session.requests[0], paths[number][0], 0.0)), 1.0)
    assert harness.victim() == 2
    harness.pool.drop(paths[2][0][0])
    assert harness.victim() == 1


def test_a_preempted_call_needs_its_extents_again() -> None:
    sessions = [chain(500), chain(500)]
    paths = build_paths(sessions)
    policy = BeladyPolicy(FACTS)
    policy.prepare(sessions, paths, [0.0, 0.0])
    harness = PolicyHarness(policy)
    harness.serve(harness.arrive(AgentCall(1, 0, sessions[1].requests[0], paths[1][0], 0.0)))
    call = harness.arrive(AgentCall(0, 0, sessions[0].requests[0], paths[0][0], 0.0))
    harness.pool.acquire(call.path)
    harness.policy.admit(call, 1.0)
    harness.pool.mark_computed(call.path, 500)
    harness.pool.release(call.path, call.chain, 1.0)
    harness.policy.preempt(call, 1.0)
    assert harness.victim() == 1
