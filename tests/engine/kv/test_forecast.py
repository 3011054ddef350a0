"""engine/kv/forecast.py: how long a block waits for its reader, and what is evicted first."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.kv.forecast import eviction_score, expected_wait

DURATIONS = st.lists(st.floats(0, 1e6), max_size=40).map(sorted)


def brute_force(durations: list[float], age: float) -> float:
    """Return the least ratio of time kept to probability of a return, with one wait that never ends."""
    waits = [seconds - age for seconds in durations if seconds > age]
    if not waits:
        return age
    number = len(waits) + 1
    return min(
        sum(min(wait, keep) for wait in [*waits, math.inf]) / number / (sum(wait <= keep for wait in waits) / number)
        for keep in waits
    )


@given(DURATIONS, st.floats(0, 1e6))
def test_the_wait_is_the_least_cost_of_a_return(durations: list[float], age: float) -> None:
    assert expected_wait(durations, age) == pytest.approx(brute_force(durations, age), rel=1e-9, abs=1e-9)


def test_a_rare_hour_does_not_hide_the_usual_ten_seconds() -> None:
    usual = [9.0, 10.0, 10.0, 11.0] * 8
    assert expected_wait(sorted([*usual, 3600.0]), 0.0) < 15
    assert expected_wait(sorted([*usual, 3600.0]), 60.0) > 3000  # only the hour is left


def test_what_outlasted_all_earlier_waits_is_expected_to_last_as_long_again() -> None:
    assert expected_wait([], 0.0) == 0.0
    assert expected_wait([], 7.0) == 7.0
    assert expected_wait([1.0, 2.0], 50.0) == 50.0


@given(DURATIONS.filter(bool))
def test_a_wait_is_never_shorter_than_the_shortest_known_one(durations: list[float]) -> None:
    assert expected_wait(durations, -1.0) >= durations[0] + 1.0


def test_eviction_prefers_long_waits_and_cheap_blocks() -> None:
    usual = eviction_score(10.0, 16, 0.5)
    assert eviction_score(20.0, 16, 0.5) > usual
    assert eviction_score(10.0, 32, 0.5) > usual
    assert eviction_score(10.0, 16, 1.0) < usual
    assert eviction_score(math.inf, 16, 0.5) == math.inf


@pytest.mark.parametrize(("tokens", "seconds"), [(0, 1.0), (16, 0.0), (16, -1.0)])
def test_blocks_without_tokens_or_cost_are_refused(tokens: int, seconds: float) -> None:
    with pytest.raises(ValueError, match="cost time to compute"):
        eviction_score(1.0, tokens, seconds)
