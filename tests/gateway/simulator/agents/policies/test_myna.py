"""gateway/simulator/agents/policies/myna.py: its parts together, and each of them turned off."""

import pytest

from gateway.programs.service import IDLE_SECONDS
from gateway.simulator.agents.call import AgentCall
from gateway.simulator.agents.policies.myna import PARTS, MynaPolicy
from gateway.simulator.agents.replay import replay
from gateway.simulator.engine import H100
from tests.gateway.simulator.agents.policies.harness import FACTS, PolicyHarness
from tests.gateway.simulator.agents.synthetic import chain


def harness(*without: str, capacity: int = FACTS.capacity) -> PolicyHarness:
    return PolicyHarness(MynaPolicy(FACTS, frozenset(without)), capacity)


def teach(harness: PolicyHarness, seconds: float) -> None:
    """Let the policy learn that tools take so many seconds."""
    for session in range(100, 120):
        call = harness.serve(harness.call(session, 10), 0.0)
        harness.now += seconds
        harness.serve(harness.next(call, 20), 0.0)
        harness.policy.leave(session, harness.now)


def test_a_program_that_returns_goes_before_newcomers() -> None:
    program = harness()
    first = program.serve(program.call(0))
    program.now += 60.0
    newcomer = program.call(1)
    assert program.order(newcomer, program.next(first, 1100)) == [0, 1]
    plain = harness("priority")
    first = plain.serve(plain.call(0))
    newcomer = plain.call(1)
    assert plain.order(newcomer, plain.next(first, 1100)) == [1, 0]


def test_newcomers_wait_for_kv_that_is_read_soon() -> None:
    for without, waits in ((), True), (("pausing",), False):
        program = harness(*without)
        teach(program, 5.0)
        program.serve(program.call(0, 6000))
        assert program.admits(program.call(1, 5000)) is not waits


def test_shared_kv_counts_once() -> None:
    program = harness()
    teach(program, 5.0)
    trunk = program.serve(program.call(0, 4000))
    for agent in "ab":  # sub-agents that extend the same 4,000 tokens
        program.serve(program.next(trunk, 4500, agent=agent, stop="tool_use"))
    assert program.admits(program.call(1, 4700))  # 5,000 tokens are protected, and an answer has 256
    assert not program.admits(program.call(1, 4800))


def test_kv_that_a_running_call_holds_does_not_count() -> None:
    for runs in (False, True):
        program = harness()
        teach(program, 5.0)
        trunk = program.serve(program.call(0, 4000))
        program.serve(program.next(trunk, 4500))
        if runs:
            program.pool.acquire(trunk.path)
        # the running call holds 4,000 tokens of the pool, and only 500 more are protected: as before, and no fewer
        assert program.admits(program.call(1, 5200))
        assert not program.admits(program.call(1, 5300))


def test_kv_of_a_tool_that_takes_for_ever_keeps_no_program_waiting() -> None:
    program = harness()
    teach(program, 500.0)
    program.serve(program.call(0, 6000))
    assert program.admits(program.call(1, 5000))


def test_the_program_that_is_expected_last_is_evicted_first() -> None:
    program = harness()
    teach(program, 5.0)
    for seconds in (400.0, 500.0) * 5:
        call = program.serve(program.call(200, 10, stop="end_turn"), 0.0)
        program.now += seconds
        program.serve(program.next(call, 20, stop="end_turn"), 0.0)
        program.policy.leave(200, program.now)
    program.serve(program.call(0, 1000))  # the least recently used one, in a short tool
    program.serve(program.call(1, 1000, stop="end_turn"))
    assert program.victim() != 0
    candidates = {extent: None for extent in program.pool.candidates if extent.chain[0] in (0, 1)}
    assert program.policy.select(candidates, program.now).chain[0] == 1
    plain = MynaPolicy(FACTS, frozenset({"eviction"}))
    assert plain.select(candidates, program.now).chain[0] == 0


def test_kv_of_a_waiting_call_is_evicted_last() -> None:
    program = harness()
    teach(program, 5.0)
    waiting = program.serve(program.call(0, 1000))
    program.serve(program.call(1, 1000))
    program.next(waiting, 1100)
    candidates = {extent: None for extent in program.pool.candidates if extent.chain[0] in (0, 1)}
    assert program.policy.select(candidates, program.now).chain[0] == 1


def test_kv_of_a_paused_call_whose_prompt_is_mostly_evicted_is_not_protected() -> None:
    # the call computes most of its prompt again in any case, and would keep memory idle while it pauses
    for evicted, victim in (100, 1), (900, 0):
        program = harness()
        teach(program, 5.0)
        paused = program.serve(program.call(0, 1000))
        program.next(paused, 1100)
        program.now += 1000.0
        program.serve(program.call(1, 1000))
        paused.path[0].resident = paused.path[0].ready = 1000 - evicted
        candidates = {extent: None for extent in program.pool.candidates if extent.chain[0] in (0, 1)}
        assert program.policy.select(candidates, program.now).chain[0] == victim


def test_without_forecasts_a_pause_lasts_as_long_again() -> None:
    program = harness("forecast")
    teach(program, 500.0)
    program.serve(program.call(0, 6000))
    newcomer = program.call(1, 5000)
    assert not program.admits(newcomer)
    program.now += 33.0  # more than two prefills of 6000 + 10000 rows
    assert program.admits(newcomer)


@pytest.mark.parametrize("part", PARTS)
def test_sessions_complete_without_each_part(part: str) -> None:
    sessions = [chain(1000, 3000, 4000, 6000, pause=2.0) for _ in range(8)]
    outcome = replay(sessions, [0.0] * 8, H100, 15_000, lambda facts: MynaPolicy(facts, frozenset({part})))
    assert outcome.calls == 32
    assert min(outcome.seconds) > 0


def test_nothing_is_known_of_the_future() -> None:
    """Replay sessions that differ only after a time: until then, the policy must do the same."""
    long = [chain(1000, 3000, 4000, 6000, 8000, pause=20.0) for _ in range(6)]
    short = [type(session)(session.id, 0, 0, session.requests[:3]) for session in long]
    seen: list[list[tuple[int, int, float]]] = []
    for sessions in (long, short):
        admitted: list[tuple[int, int, float]] = []

        class RecordingPolicy(MynaPolicy):
            def admit(self, call: AgentCall, now: float, admitted: list[tuple[int, int, float]] = admitted) -> None:
                super().admit(call, now)
                admitted.append((call.session, call.index, now))

        replay(sessions, [0.0] * 6, H100, 15_000, RecordingPolicy)
        seen.append(admitted)
    # the sessions differ from the fourth request on
    differs = next(number for number, (_, index, _) in enumerate(seen[0]) if index == 3)
    assert differs > 6
    assert seen[0][:differs] == seen[1][:differs]


def test_programs_that_ended_are_forgotten_by_age() -> None:
    program = harness(capacity=10**7)
    for session in range(200):
        program.serve(program.call(session, 100))
        program.policy.leave(session, program.now)
        program.now += 60.0
    assert isinstance(program.policy, MynaPolicy)
    assert len(program.policy) <= IDLE_SECONDS / 60 + 1
