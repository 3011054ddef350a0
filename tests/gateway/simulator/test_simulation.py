"""Tests of gateway/simulator/simulation.py: the scheduler on virtual time, over simulated engines."""

import gc
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.simulator.simulation import Outcome, Scenario, simulate
from gateway.simulator.trace import BadTrace


def test_a_scenario_is_reproducible() -> None:
    scenario = Scenario(applications=40, engines=2, seed=3)
    first, again = (simulate(scenario, ["fifo", "parrot", "myna"]) for _ in range(2))
    assert [outcome.seconds for outcome in first] == [outcome.seconds for outcome in again]
    assert len({outcome.calls for outcome in first}) == 1, "all policies do the same work"
    assert all(len(outcome.seconds) == 40 and min(outcome.seconds) > 0 for outcome in first)


@pytest.mark.parametrize("policy", ["fifo", "parrot", "myna"])
def test_real_time_changes_nothing(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that no decision of the scheduler reads a real clock: a busy machine must not change the figures."""
    scenario = Scenario(applications=40, engines=2, seed=3)
    expected = simulate(scenario, [policy])[0].seconds
    generator, now = random.Random(1), 1e6

    def jump() -> float:
        nonlocal now
        now += generator.choice((0.0, 1e-4, 10.0))
        return now

    for name in ("monotonic", "time", "perf_counter"):
        monkeypatch.setattr(time, name, jump)
    seconds = simulate(scenario, [policy])[0].seconds
    monkeypatch.undo()
    assert seconds == expected


def test_short_calls_do_not_wait_for_large_graphs() -> None:
    fifo, ours = simulate(Scenario(applications=60, mix="mixed", utilisation=1.5, seed=5), ["fifo", "myna"])
    assert max(ours.by_kind["chat"]) < max(ours.by_kind["map_reduce"])
    assert sum(ours.seconds) < 1.1 * sum(fifo.seconds)


def test_the_reported_figures() -> None:
    outcome = Outcome("myna", [4.0, 1.0, 2.0, 3.0], {"chat": [1.0, 2.0], "chain": [3.0, 4.0]}, calls=8, prompt=100)
    outcome.cached, outcome.busy, outcome.span, outcome.real = 25, 6.0, 4.0, 0.004
    assert outcome.summary(engines=2) == {
        "policy": "myna",
        "mean_s": 2.5,
        "p50_s": 3.0,
        "p99_s": 4.0,
        "cached": 0.25,
        "busy": 0.75,
        "calls": 8,
        "us_per_call": pytest.approx(500.0),
        "chat_mean_s": 1.5,
        "chat_p99_s": 2.0,
        "chain_mean_s": 3.5,
        "chain_p99_s": 4.0,
    }


def test_the_99th_percentile_is_one_of_the_values() -> None:
    for count, expected in ((1, 1.0), (99, 99.0), (100, 99.0), (101, 100.0), (1000, 990.0)):
        outcome = Outcome("fifo", [float(number) for number in range(count, 0, -1)])
        assert outcome.summary(engines=1)["p99_s"] == expected


def test_the_utilisation_and_the_engines_determine_the_load() -> None:
    low, high = (
        simulate(Scenario(applications=40, mix="chat", utilisation=utilisation, seed=2), ["myna"])[0]
        for utilisation in (0.2, 2.0)
    )
    assert low.span > 3 * high.span, "the applications arrive over a longer time"
    assert sum(low.seconds) < sum(high.seconds)
    assert 0 < low.busy < 0.6 * low.span
    assert low.calls == high.calls
    two = simulate(Scenario(applications=40, mix="chat", utilisation=0.2, engines=2, seed=2), ["myna"])[0]
    assert two.span < 0.7 * low.span, "two engines get the same applications in half the time"


@pytest.fixture
def thresholds() -> Iterator[tuple[int, int, int]]:
    """Set thresholds of the cycle collector, and yield them."""
    before = gc.get_threshold()
    gc.set_threshold(701, 11, 12)
    yield gc.get_threshold()
    gc.set_threshold(*before)


def test_the_cycle_collector_keeps_its_settings(thresholds: tuple[int, int, int]) -> None:
    simulate(Scenario(applications=3, mix="chat"), ["fifo"])
    assert gc.get_threshold() == thresholds
    with pytest.raises(BadTrace):
        simulate(Scenario(trace=Path(__file__)), ["fifo"])
    assert gc.get_threshold() == thresholds
