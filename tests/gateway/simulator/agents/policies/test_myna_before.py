"""gateway/simulator/agents/policies/myna_before.py: ranks of plain calls, and the engine's own eviction policy."""

import pytest

from gateway.scheduler.priority import LONG_WORK_EXTENSION, WORK_FACTOR, deadline_extension
from gateway.simulator.agents.policies.myna_before import MynaBeforePolicy
from tests.gateway.simulator.agents.policies.harness import FACTS, PolicyHarness


def test_the_rank_of_a_call_is_its_deadline() -> None:
    harness = PolicyHarness(MynaBeforePolicy(FACTS))
    short, long = harness.call(0, 100), harness.call(1, 9000)
    assert harness.order(long, short) == [0, 1]
    assert harness.policy.rank(long) - harness.policy.rank(short) >= WORK_FACTOR * 8.9 + LONG_WORK_EXTENSION
    assert deadline_extension(9.0) == WORK_FACTOR * 9.0 + LONG_WORK_EXTENSION


def test_cached_tokens_of_the_session_are_no_work() -> None:
    harness = PolicyHarness(MynaBeforePolicy(FACTS))
    new, extending = harness.call(0, 5000), harness.call(1, 5000, source=0, shared=4900)
    assert harness.policy.rank(extending) + 4.9 * WORK_FACTOR < harness.policy.rank(new)


def test_prompts_that_are_read_again_are_evicted_later() -> None:
    harness = PolicyHarness(MynaBeforePolicy(FACTS), capacity=100_000)
    again = harness.serve(harness.call(0))
    for _ in range(1000):  # the policy learns that what was read often is read soon
        call = harness.arrive(type(again)(0, 0, again.recorded, again.path, harness.now))
        call.computed = call.length
        again = harness.serve(call)
    harness.serve(harness.call(1))
    assert harness.victim() == 1


def test_without_candidates_nothing_can_be_evicted() -> None:
    with pytest.raises(RuntimeError, match="no extent can be evicted"):
        MynaBeforePolicy(FACTS).select({}, 0.0)
