"""Periods of budgets: fixed windows, aligned to UTC.

`1h` begins at each full hour, `1d` at midnight, `month` on the first day of a month, and `30d` every 30 days since
1970-01-01, all in UTC. A budget without a period has one window without an end.
"""

import math
import re
from datetime import UTC, datetime
from typing import NamedTuple

_PERIOD = re.compile(r"([1-9]\d{0,3})([hd])", re.ASCII)
_UNITS = {"h": 3_600, "d": 86_400}
PERIOD_PATTERN = r"^([1-9][0-9]{0,3}[hd]|month)$"
"""Regular expression of a period."""


class Window(NamedTuple):
    """One window of a budget, in seconds of the Unix clock. `end` is infinite for a budget without a period."""

    start: float
    end: float


FOR_EVER = Window(0.0, math.inf)


def window_at(period: str | None, now: float) -> Window:
    """Return the window of a period that contains `now`. Raises ValueError for an unknown period."""
    if period is None:
        return FOR_EVER
    if period == "month":
        day = datetime.fromtimestamp(now, UTC)
        start = day.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        end = start.replace(year=start.year + start.month // 12, month=start.month % 12 + 1)
        return Window(start.timestamp(), end.timestamp())
    match = _PERIOD.fullmatch(period)
    if match is None:
        raise ValueError(f"{period!r} is not a period such as 1h, 1d, 30d or month")
    length = int(match[1]) * _UNITS[match[2]]
    start_seconds = now // length * length
    return Window(start_seconds, start_seconds + length)
