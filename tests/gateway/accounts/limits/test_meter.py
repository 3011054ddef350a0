"""gateway/accounts/limits/meter.py: what is used and reserved, against a simple model."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.accounts.limits.meter import LocalMeter, UsedAmount
from gateway.accounts.limits.periods import window_at

events = st.lists(
    st.tuples(st.integers(0, 40_000), st.integers(0, 30), st.integers(0, 30), st.booleans()), min_size=1, max_size=60
)
"""Milliseconds before a request, what it reserves, what it uses, and whether an earlier request ends before it."""


@given(st.integers(1, 60), events)
def test_a_rate_admits_what_a_simple_model_admits(limit: int, requests: list[tuple[int, int, int, bool]]) -> None:
    meter = LocalMeter(limit, per_minute=True)
    used, at, now = Fraction(0), Fraction(0), Fraction(0)
    running: list[tuple[int, int]] = []
    for pause, bound, amount, ends in requests:
        now += Fraction(pause, 1000)
        used = max(Fraction(0), used - Fraction(limit, 60) * (now - at))
        at = now
        if ends and running:
            reserved, used_amount = running.pop()
            used += used_amount
            meter.settle(reserved, used_amount, float(now))
        level = used + sum(reserved for reserved, _ in running)
        if abs(level + 1 - limit) > Fraction(1, 10**6):  # at the limit itself, fractions are rounded
            assert meter.has_room(float(now)) == (level + 1 <= limit)
        if meter.has_room(float(now)):
            meter.reserved += bound
            running.append((bound, amount))
        assert meter.reserved == sum(reserved for reserved, _ in running)
        expected = limit - used - sum(reserved for reserved, _ in running)
        assert meter.remaining(float(now)) == pytest.approx(max(0.0, float(expected)), abs=1e-6)


@given(st.integers(1, 100), st.lists(st.integers(0, 5_000), max_size=300))
def test_in_any_interval_a_rate_admits_at_most_what_is_documented(limit: int, pauses: list[int]) -> None:
    meter, now, admitted = LocalMeter(limit, per_minute=True), 1_000.0, list[float]()
    for pause in pauses:
        now += pause / 1_000
        if meter.has_room(now):
            meter.settle(0, 1, now)
            admitted.append(now)
    for begin in range(len(admitted)):
        for end in range(begin, len(admitted)):
            seconds = admitted[end] - admitted[begin]
            assert end - begin + 1 <= limit * (1 + seconds / 60) + 1e-6


def test_a_rate_refills_continuously() -> None:
    meter = LocalMeter(6, per_minute=True)
    for _ in range(6):
        assert meter.has_room(0.0)
        meter.settle(0, 1, 0.0)
    assert meter.seconds_to_room(0.0) == pytest.approx(10.0)
    assert meter.seconds_to_reset(0.0) == pytest.approx(60.0)
    assert not meter.has_room(9.9)
    assert meter.has_room(10.1)


def test_a_clock_that_goes_back_refills_nothing() -> None:
    meter = LocalMeter(1, per_minute=True)
    meter.settle(0, 1, 100.0)
    assert not meter.has_room(40.0)
    assert not meter.has_room(100.0)
    assert meter.has_room(160.1)


@given(st.sampled_from(["1h", "1d", "month", None]), events)
def test_a_budget_is_exceeded_by_at_most_one_request(
    period: str | None, requests: list[tuple[int, int, int, bool]]
) -> None:
    meter, now, limit = LocalMeter(50, period=period), 1.7e9, 50
    used: dict[float, int] = {}
    running: list[tuple[int, int]] = []
    for pause, bound, amount, ends in requests:
        now += pause
        if ends and running:
            reserved, used_amount = running.pop(0)
            meter.settle(reserved, used_amount, now)
            start = window_at(period, now).start
            used[start] = used.get(start, 0) + used_amount
        start = window_at(period, now).start
        level = used.get(start, 0) + sum(reserved for reserved, _ in running)
        assert meter.has_room(now) == (level < limit)
        if meter.has_room(now):
            meter.reserved += bound
            running.append((bound, min(amount, bound)))
    assert all(amount < limit + 30 + 30 for amount in used.values())


def test_a_budget_of_money_admits_until_it_is_used_up() -> None:
    meter = LocalMeter(1.0, unit=0.0)
    meter.settle(0, 0.999, 0.0)
    assert meter.has_room(0.0)
    assert not meter.is_used_up(0.0)
    meter.settle(0, 0.001, 0.0)
    assert not meter.has_room(0.0)
    assert meter.is_used_up(0.0)
    assert meter.seconds_to_room(0.0) == math.inf


def test_a_budget_of_zero_admits_nothing() -> None:
    for unit in (0.0, 1.0):
        assert not LocalMeter(0, unit=unit).has_room(0.0)
        assert LocalMeter(0, unit=unit).is_used_up(0.0)


def test_a_reservation_alone_uses_nothing_up() -> None:
    meter = LocalMeter(10, period="1h")
    meter.reserved += 20
    assert not meter.has_room(0.0)
    assert not meter.is_used_up(0.0)
    assert meter.seconds_to_room(0.0) == math.inf, "the end of the request is unknown"
    meter.settle(20, 3, 0.0)
    assert meter.used_at(0.0) == 3
    assert meter.remaining(0.0) == 7


def test_a_new_window_begins_with_nothing_used() -> None:
    amount = UsedAmount(period="1h")
    assert amount.advance(3_599.0) == 0
    amount.amount = 7.0
    assert amount.seconds_until(0.0, 3_599.0) == 1.0
    assert amount.advance(3_600.0) == 0.0


def test_another_limit_keeps_what_is_used() -> None:
    meter = LocalMeter(10, per_minute=True)
    meter.settle(0, 10, 0.0)
    meter.set_limit(20)
    assert meter.has_room(0.0)
    assert meter.remaining(0.0) == 10
    assert meter.seconds_to_reset(0.0) == pytest.approx(30.0)
