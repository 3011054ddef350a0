"""gateway/simulator/agents/comparison.py: settings, ratios, and equal figures from one process or several."""

from pathlib import Path

import pytest

from gateway.simulator.agents.comparison import TOGETHER, WINDOW, Replays, Setting, compare, half_of
from gateway.simulator.agents.sessions import read_sessions
from gateway.simulator.trace import BadTrace
from tests.gateway.simulator.agents.synthetic import random_lines, write

FEW = Replays(tables=("cpu",), utilisations=(0.8, TOGETHER), oversubscriptions=(2.0,), policies=("myna",), sessions=8)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "sessions", random_lines(2, 12))


def test_each_setting_is_compared_with_vllm(file: Path) -> None:
    comparison = compare(file, FEW)
    assert [result.setting for result in comparison.results] == [
        Setting("cpu", 0.8, 2.0),
        Setting("cpu", TOGETHER, 2.0),
    ]
    for result in comparison.results:
        assert list(result.outcomes) == ["vllm", "myna"]
        assert result.is_smallest_pool or result.capacity == int(result.live_tokens / 2)
    ratios = [result.outcomes["vllm"].mean / result.outcomes["myna"].mean for result in comparison.results]
    assert comparison.ratios() == {"vllm": pytest.approx(1.0), "myna": pytest.approx((ratios[0] * ratios[1]) ** 0.5)}


def test_the_json_has_all_figures(file: Path) -> None:
    comparison = compare(file, FEW)
    shown = comparison.as_json()
    assert shown["sessions"] == 8
    first, second = shown["settings"]  # type: ignore[misc]
    assert (first["arrivals"], second["arrivals"]) == ("poisson", "together")
    assert first["policies"]["myna"] == {
        "mean_s": comparison.results[0].outcomes["myna"].mean,
        "p99_s": comparison.results[0].outcomes["myna"].p99,
        "hit_rate": comparison.results[0].outcomes["myna"].hit_rate,
        "preemptions": comparison.results[0].outcomes["myna"].preemptions,
    }
    assert shown["mean_ratio_to_vllm"] == comparison.ratios()


def test_processes_and_repetitions_change_nothing(file: Path) -> None:
    alone = compare(file, FEW).as_json()
    assert compare(file, Replays(**{**vars(FEW), "jobs": 2})).as_json() == alone
    assert compare(file, Replays(**{**vars(FEW), "seed": 2})).as_json() != alone


def test_a_pool_always_fits_the_largest_call(file: Path) -> None:
    (result, _) = compare(file, Replays(**{**vars(FEW), "oversubscriptions": (500.0,)})).results
    assert result.is_smallest_pool
    assert result.capacity > result.live_tokens / 500


def test_the_settings_of_one_load_are_those_of_separate_comparisons(file: Path) -> None:
    both = compare(file, Replays(**{**vars(FEW), "oversubscriptions": (2.0, 4.0)}))
    for oversubscription in (2.0, 4.0):
        alone = compare(file, Replays(**{**vars(FEW), "oversubscriptions": (oversubscription,)}))
        assert alone.results == [r for r in both.results if r.setting.oversubscription == oversubscription]


def test_the_halves_of_a_file_have_each_session_once(file: Path) -> None:
    every = read_sessions(file, WINDOW).sessions
    parts = [compare(file, Replays(**{**vars(FEW), "half": half})).recording.sessions for half in (0, 1)]
    assert min(map(len, parts)) > 0
    assert sorted(s.id for part in parts for s in part) == sorted(s.id for s in every)
    assert all(half_of(session) == half for half, part in enumerate(parts) for session in part)


def test_a_half_without_sessions_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "one", random_lines(2, 1))
    (session,) = read_sessions(file, WINDOW).sessions
    with pytest.raises(BadTrace, match="has no session of half"):
        compare(file, Replays(**{**vars(FEW), "half": 1 - half_of(session)}))
