"""engine/kv/forecast.py: how long a block waits for its reader, and what is evicted first."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.kv.forecast import eviction_score, expected_wait

DURATIONS = st.lists(st.floats(0, 1e6), max_size=40).map(sorted)


def best_time(durations: list[float]) -> float:
    """Return the longest time to keep with the minimum cost of a return, from the release on. One wait never ends."""
    waits = [*durations, math.inf]
    costs = [(sum(min(wait, keep) for wait in waits) / sum(wait <= keep for wait in waits), keep) for keep in durations]
    least = min(cost for cost, _ in costs)
    return max(keep for cost, keep in costs if cost <= least * (1 + 1e-9))


def isotonic_wait(durations: list[float], age: float) -> float:
    """Return the seconds for each return by the formula of isotonic regression: the maximum over earlier ages of the
    minimum over later ages, with one wait that never ends."""
    waits = [*durations, math.inf]
    # before and after each return: the total seconds of all waits
    totals = [0.0] + [sum(min(wait, seconds) for wait in waits) for seconds in durations]
    first = sum(seconds <= age for seconds in durations)
    return max(
        min((totals[end] - totals[begin]) / (end - begin) for end in range(first + 1, len(totals)))
        for begin in range(first + 1)
    )


WHOLE = st.lists(st.integers(1, 1000).map(float), min_size=1, max_size=30).map(sorted)


@given(WHOLE, st.integers(0, 1000))
def test_the_wait_is_the_isotonic_estimate_after_the_best_time_to_keep(durations: list[float], age: int) -> None:
    if best_time(durations) <= age < durations[-1]:
        assert expected_wait(durations, age) == pytest.approx(isotonic_wait(durations, age), rel=1e-9)
    elif age >= durations[-1]:
        assert expected_wait(durations, age) >= age


@given(WHOLE, st.integers(0, 1000))
def test_until_the_best_time_to_keep_the_wait_counts_from_now_until_then(durations: list[float], age: int) -> None:
    best = best_time(durations)
    if age < best:
        left = [seconds - age for seconds in durations if seconds > age]
        kept = sum(min(seconds, best - age) for seconds in [*left, math.inf])
        assert expected_wait(durations, age) == pytest.approx(kept / sum(x <= best - age for x in left), rel=1e-6)


@given(DURATIONS)
def test_a_new_wait_costs_the_minimum_over_all_times_to_keep(durations: list[float]) -> None:
    """Compare with the reciprocal of the Gittins index."""
    waits = [*durations, math.inf]
    costs = [sum(min(wait, keep) for wait in waits) / sum(wait <= keep for wait in waits) for keep in durations]
    if durations and durations[0] > 0:
        assert expected_wait(durations, 0.0) == pytest.approx(min(costs), rel=1e-9)


@given(WHOLE, st.integers(0, 1000), st.integers(0, 1000))
def test_after_the_best_time_a_wait_never_becomes_shorter(durations: list[float], age: int, more: int) -> None:
    """Otherwise the pool would evict a part of one group, then a part of another one, and each would miss some."""
    age += int(best_time(durations))
    assert expected_wait(durations, age + more) >= expected_wait(durations, age) * (1 - 1e-9)


def test_a_tool_that_always_takes_as_long_is_near_shortly_before() -> None:
    minute = [58.0, 59.0, 60.0, 61.0, 62.0] * 4
    assert expected_wait(sorted(minute), 50.0) < 15 < 60 < expected_wait(sorted(minute), 0.0) < 70


def test_the_few_waits_that_are_left_do_not_look_near() -> None:
    """Durations from a heavy tail: after 100 s, five of 100 are left, and the earliest of them ends in 5 s by chance.

    The minimum over all times to keep would be 30 s for each return.
    """
    tail = [105.0, 200.0, 400.0, 800.0, 1600.0]
    durations = sorted([5.0] * 60 + [20.0] * 25 + [60.0] * 10 + tail)
    assert expected_wait(durations, 100.0) > 60.0
    assert expected_wait(durations, 100.0) > expected_wait(durations, 30.0) > expected_wait(durations, 6.0)


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
    assert expected_wait(durations, -1.0) == expected_wait(durations, 0.0) >= durations[0] * 0.999


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
