"""gateway/simulator/agents/comparison.py: settings, ratios, and equal figures from one process or several."""

from pathlib import Path

import pytest

from gateway.simulator.agents.comparison import TOGETHER, Replays, Setting, compare
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
