"""gateway/simulator/agents/server_engine.py: the server's own code in virtual time."""

import math
from pathlib import Path

import pytest

from gateway.simulator.agents.call import AgentCall
from gateway.simulator.agents.kv_pool import build_paths
from gateway.simulator.agents.policies.vllm import VllmPolicy
from gateway.simulator.agents.replay import replay, replay_on_server
from gateway.simulator.agents.server_engine import ServerEngine, ServerSettings
from gateway.simulator.agents.sessions import RecordedSession, read_sessions, scale_tokens
from gateway.simulator.engine import CPU, H100
from tests.gateway.simulator.agents.synthetic import chain, random_lines, write


def sessions_of(folder: Path, count: int) -> list[RecordedSession]:
    found = read_sessions(write(folder / "sessions", random_lines(3, count)), 60_000).sessions
    return [scale_tokens(session, 1 / 16) for session in found]


def test_cached_tokens_are_those_of_the_recording_if_memory_suffices() -> None:
    outcome = replay_on_server([chain(1600, 3200, 4800)], [0.0], H100, 1 << 15)
    assert outcome.hit_rate == pytest.approx(4800 / 9600)
    assert outcome.calls == 3
    quick = replay_on_server([chain(1600, 3200, 4800, pause=0.0)], [5.0], H100, 1 << 15)
    assert quick.seconds == pytest.approx(outcome.seconds), "pauses and arrivals do not count"


def test_one_session_takes_about_as_long_as_on_the_modelled_engine() -> None:
    sessions = [chain(1600, 3200, 4800)]
    modelled = replay(sessions, [0.0], H100, 1 << 15, VllmPolicy)
    assert replay_on_server(sessions, [0.0], H100, 1 << 15).mean == pytest.approx(modelled.mean, rel=0.1)


def test_all_calls_of_a_small_pool_are_served_and_the_result_is_reproducible(tmp_path: Path) -> None:
    sessions = sessions_of(tmp_path, 8)
    largest = max(request.prompt + request.output for session in sessions for request in session.requests)
    arrivals = [3.0 * number for number in range(len(sessions))]
    first, second = (replay_on_server(sessions, arrivals, CPU, largest) for _ in range(2))
    assert first == second
    assert all(seconds > 0 for seconds in first.seconds)
    assert first.calls == sum(len(session.requests) for session in sessions)
    roomy = replay_on_server(sessions, arrivals, CPU, 1 << 18)
    assert first.hit_rate < roomy.hit_rate
    assert first.mean > roomy.mean


def test_an_api_key_has_its_share_of_the_pool_beside_a_key_with_many_sessions() -> None:
    sessions = [chain(*range(800, 4001, 800), pause=5.0) for _ in range(16)]
    arrivals = [0.0] * 15 + [100.0]
    one_key = replay_on_server(sessions, arrivals, CPU, 10_000)
    own_key = replay_on_server(sessions, arrivals, CPU, 10_000, ServerSettings(keys=16))
    assert own_key.calls == one_key.calls
    assert own_key.seconds[-1] < one_key.seconds[-1], "the session that arrives last does not wait for older programs"


def test_each_setting_turns_off_a_part_of_the_server() -> None:
    sessions = [chain(*range(400, 2401, 400), pause=5.0) for _ in range(8)]
    arrivals = [float(number) for number in range(8)]
    whole = replay_on_server(sessions, arrivals, CPU, 5_000)
    for changed in (
        ServerSettings(order="deadlines"),
        ServerSettings(order="arrival"),
        ServerSettings(learns=False),
        ServerSettings(pauses=False),
        ServerSettings(is_interactive=True),
    ):
        other = replay_on_server(sessions, arrivals, CPU, 5_000, changed)
        assert other.calls == whole.calls == 48
        assert other.seconds != whole.seconds
    plain = replay_on_server(
        sessions, arrivals, CPU, 5_000, ServerSettings(order="arrival", learns=False, pauses=False)
    )
    assert plain.hit_rate < whole.hit_rate
    assert plain.mean > whole.mean


def test_a_call_that_is_larger_than_the_pool_is_refused() -> None:
    sessions = [chain(1000)]
    engine = ServerEngine(CPU, 1000)
    call = AgentCall(0, 0, sessions[0].requests[0], build_paths(sessions)[0][0], 0.0)
    with pytest.raises(ValueError, match="larger than the KV pool"):
        engine.submit(call)
    assert not engine.has_work
    engine = ServerEngine(CPU, 1100)
    engine.submit(call)
    assert engine.has_work
    assert engine.advance(math.inf) == [call]
