"""gateway/accounts/limits/periods.py: windows of budgets, aligned to UTC."""

import math
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.accounts.limits.periods import window_at


def seconds(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("period", "start", "end"),
    [
        ("1h", "2026-03-31T13:00", "2026-03-31T14:00"),
        ("1d", "2026-03-31T00:00", "2026-04-01T00:00"),
        ("month", "2026-03-01T00:00", "2026-04-01T00:00"),
    ],
)
def test_windows_begin_at_full_hours_days_and_months(period: str, start: str, end: str) -> None:
    for now in ("2026-03-31T13:00", "2026-03-31T13:59:59"):
        assert window_at(period, seconds(now)) == (seconds(start), seconds(end))


def test_december_ends_with_the_year() -> None:
    assert window_at("month", seconds("2027-12-31T23:59")) == (seconds("2027-12-01T00:00"), seconds("2028-01-01T00:00"))


def test_without_a_period_there_is_one_window() -> None:
    assert window_at(None, 5.0) == (0.0, math.inf)


@given(st.sampled_from(["1h", "7h", "1d", "30d", "9999d", "month"]), st.floats(0, 4e9))
def test_each_time_is_in_its_window_and_the_next_one_begins_at_its_end(period: str, now: float) -> None:
    window = window_at(period, now)
    assert window.start <= now < window.end
    assert window_at(period, window.end).start == window.end
    assert window_at(period, window.start) == window


@pytest.mark.parametrize("period", ["", "1", "d", "0d", "-1d", "1.5h", "1 d", "1w", "Month", "99999d", "١d"])
def test_other_texts_are_no_periods(period: str) -> None:
    with pytest.raises(ValueError, match="is not a period"):
        window_at(period, 0.0)
