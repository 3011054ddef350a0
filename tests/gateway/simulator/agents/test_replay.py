"""gateway/simulator/agents/replay.py: completion without pauses, live KV, and every policy on the same sessions."""

import math
import random
from pathlib import Path

import pytest

from gateway.simulator.agents.comparison import POLICIES, create
from gateway.simulator.agents.policies.vllm import VllmPolicy
from gateway.simulator.agents.replay import LIVE_PAUSE, replay
from gateway.simulator.agents.sessions import RecordedSession, read_sessions
from gateway.simulator.engine import H100
from tests.gateway.simulator.agents.synthetic import chain, random_lines, request, write

UNLIMITED = 1 << 40


def test_pauses_do_not_count() -> None:
    quick = replay([chain(1000, 1200, 1400, pause=0.0)], [0.0], H100, UNLIMITED, VllmPolicy)
    slow = replay([chain(1000, 1200, 1400, pause=50.0)], [7.0], H100, UNLIMITED, VllmPolicy)
    assert slow.seconds == pytest.approx(quick.seconds)
    assert slow.span == pytest.approx(quick.span + 7.0 + 100.0)
    assert quick.seconds == [pytest.approx(quick.busy)]


def test_a_sub_agent_runs_beside_its_parent() -> None:
    requests = (
        request(1000, 100),
        request(5000, 800, agent="helper", after=0, pause=1.0),
        request(1200, 100, source=0, shared=1000, after=0, pause=1.0),
    )
    both = replay([RecordedSession("s", 0, 0, requests)], [0.0], H100, UNLIMITED, VllmPolicy)
    main = replay([RecordedSession("s", 0, 0, (requests[0], requests[2]))], [0.0], H100, UNLIMITED, VllmPolicy)
    assert main.seconds[0] < both.seconds[0]  # the helper ends last
    assert both.seconds[0] == pytest.approx(both.span - 1.0)


def test_cached_tokens_are_those_of_the_recording_if_memory_is_unlimited() -> None:
    outcome = replay([chain(1000, 2000, 3000)], [0.0], H100, UNLIMITED, VllmPolicy)
    assert outcome.hit_rate == pytest.approx(3000 / 6000)


def test_sessions_are_live_in_short_pauses_only() -> None:
    short, long = (
        replay([chain(1000, 1000, pause=pause), chain(10)], [0.0, 3 * LIVE_PAUSE], H100, UNLIMITED, VllmPolicy)
        for pause in (LIVE_PAUSE, LIVE_PAUSE + 100)
    )
    assert short.live_tokens > 0
    assert long.live_tokens < short.live_tokens


def sessions_of(tmp_path: Path, seed: int) -> list[RecordedSession]:
    return list(read_sessions(write(tmp_path / "sessions", random_lines(seed, 25)), 60_000).sessions)


def test_policies_serve_all_calls_and_belady_hits_most(tmp_path: Path) -> None:
    sessions = sessions_of(tmp_path, 3)
    chance = random.Random(5)
    arrivals = [chance.uniform(0, 300) for _ in sessions]
    outcomes = {name: replay(sessions, arrivals, H100, 200_000, create(name)) for name in POLICIES}
    unlimited = replay(sessions, arrivals, H100, UNLIMITED, VllmPolicy)
    for name, outcome in outcomes.items():
        assert outcome.policy == name
        assert outcome.calls == unlimited.calls
        assert all(0 < seconds < math.inf for seconds in outcome.seconds)
        assert outcome.hit_rate <= unlimited.hit_rate + 1e-3
        assert outcome.hit_rate <= outcomes["belady"].hit_rate + 1e-3
        assert outcome.p99 >= outcome.mean
    assert outcomes["myna"].mean < outcomes["vllm"].mean


@pytest.mark.parametrize("name", POLICIES)
def test_the_same_sessions_give_the_same_figures(name: str, tmp_path: Path) -> None:
    sessions = sessions_of(tmp_path, 4)[:10]
    first, second = (replay(sessions, [0.0] * 10, H100, 90_000, create(name)) for _ in range(2))
    assert first == second


def test_a_session_that_fits_alone_completes_under_memory_for_one_call(tmp_path: Path) -> None:
    sessions = sessions_of(tmp_path, 5)[:6]
    largest = max(request.prompt + request.output for session in sessions for request in session.requests)
    for name in POLICIES:
        outcome = replay(sessions, [0.0] * 6, H100, largest, create(name))
        assert len(outcome.seconds) == 6
