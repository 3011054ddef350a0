"""Meters of one gateway: how much of a limit is used, and how much is reserved.

A request is admitted while `used + reserved < limit`. It then reserves an upper bound of what it may use, and what it
really used replaces the reservation at its end. So a limit is exceeded by at most the one request that crosses it.

A rate refills continuously (GCRA): `used` falls by the limit each minute. In any T seconds at most
`limit * (1 + T / 60)` pass, and the request that crosses the limit. A budget has fixed windows, in which `used` only
grows.
"""

import math
from typing import Protocol

from gateway.accounts.limits.periods import FOR_EVER, window_at

_EPSILON = 1e-9
"""Tolerance of sums of fractions."""
_MINUTE = 60.0


class Meter(Protocol):
    """How much of one limit of a key is used. Times are seconds of the Unix clock.

    `limit`: the limit. `limit_text`: its whole part, as text. `reserved`: amount that unfinished requests may use. A
    request adds to it, whether there is room or not, after it called `has_room`, and calls `settle` at its end.
    """

    limit: float
    limit_text: str
    reserved: float

    def has_room(self, now: float) -> bool:
        """Return whether another request may enter."""

    def settle(self, reserved: float, amount: float, now: float) -> None:
        """Release a reservation, and count the amount that was really used."""

    def used_at(self, now: float) -> float:
        """Return the amount that is used."""

    def remaining(self, now: float) -> float:
        """Return how much of the limit is left, at least 0."""

    def state(self, now: float) -> tuple[float, float]:
        """Return `remaining` and `seconds_to_reset` together."""

    def is_used_up(self, now: float) -> bool:
        """Return whether the limit is reached without any reservation."""

    def seconds_to_room(self, now: float) -> float:
        """Return after how many seconds there is room, if reservations stay; infinite if that is unknown."""

    def seconds_to_reset(self, now: float) -> float:
        """Return after how many seconds nothing is used, if no request arrives."""


class UsedAmount:
    """Amount that is used and falls, or begins again with each window."""

    __slots__ = ("_at", "_end", "_start", "amount", "falls", "period", "rate")

    def __init__(self, *, rate: float = 0.0, period: str | None = None) -> None:
        """`rate`: amount that is refilled in a second. `period`: period of a budget; see `periods`."""
        self.amount = 0.0
        self.rate = rate
        self.period = period
        self.falls = bool(rate) or period is not None
        """Whether the amount depends on the time."""
        self._at = 0.0
        self._start, self._end = FOR_EVER if period is None else (0.0, 0.0)
        """The window of a budget, which `advance` finds."""

    def add(self, amount: float, now: float) -> None:
        """Use an amount. It is the same as `advance` and an addition, in one call."""
        if self.rate:
            if now > self._at:
                left = self.amount - self.rate * (now - self._at)
                self.amount = left + amount if left > 0.0 else amount
                self._at = now
                return
        elif not self._start <= now < self._end:
            self.advance(now)
        self.amount += amount

    def advance(self, now: float) -> float:
        """Return the amount that is used at `now`."""
        if self.rate:
            if now > self._at:
                left = self.amount - self.rate * (now - self._at)
                self.amount = left if left > 0.0 else 0.0
                self._at = now
        elif self.period is not None and not self._start <= now < self._end:
            self.amount = 0.0
            self._start, self._end = window_at(self.period, now)
        return self.amount

    def seconds_until(self, amount: float, now: float) -> float:
        """Return after how many seconds a smaller amount is used; infinite if never."""
        used = self.advance(now)
        if self.rate:
            return max(0.0, used - amount) / self.rate
        return self._end - now if amount >= -_EPSILON else math.inf


def seconds_to_room(used: UsedAmount, others: float, limit: float, unit: float, now: float) -> float:
    """Return after how many seconds a unit fits into a limit that is reached, if `others` stays reserved; infinite if
    that is unknown."""
    allowed = limit - others - unit
    return used.seconds_until(allowed, now) if allowed >= -_EPSILON and (unit or allowed > 0) else math.inf


class LocalMeter:
    """Meter of a limit that no other gateway shares."""

    __slots__ = ("_unit", "limit", "limit_text", "reserved", "used")

    def __init__(self, limit: float, *, per_minute: bool = False, period: str | None = None, unit: float = 1.0) -> None:
        """`unit`: smallest amount; 0 for money. `per_minute`: whether the limit is a rate. `period`: see `periods`."""
        self.limit = limit
        self.limit_text = str(int(limit))
        self.reserved = 0.0
        self.used = UsedAmount(rate=limit / _MINUTE if per_minute else 0.0, period=period)
        self._unit = unit

    def set_limit(self, limit: float) -> None:
        """Change the limit. What is used stays used."""
        self.limit = limit
        self.limit_text = str(int(limit))
        if self.used.rate:
            self.used.rate = limit / _MINUTE

    def has_room(self, now: float) -> bool:
        """Return whether another request may enter. See `Meter.has_room`."""
        used = self.used
        level = (used.advance(now) if used.falls else used.amount) + self.reserved
        return level + self._unit <= self.limit + _EPSILON if self._unit else level < self.limit

    def settle(self, reserved: float, amount: float, now: float) -> None:
        """Replace a reservation by what was used. See `Meter.settle`."""
        used = self.used
        if used.falls:
            used.add(amount, now)
        else:
            used.amount += amount
        self.reserved = left if (left := self.reserved - reserved) > 0.0 else 0.0  # sums of fractions may fall below

    def used_at(self, now: float) -> float:
        """Return the amount that is used. See `Meter.used_at`."""
        return self.used.advance(now)

    def remaining(self, now: float) -> float:
        """Return how much is left. See `Meter.remaining`."""
        return max(0.0, self.limit - self.used.advance(now) - self.reserved)

    def state(self, now: float) -> tuple[float, float]:
        """Return how much is left, and when nothing is used. See `Meter.state`."""
        used = self.used.advance(now)
        rate, left = self.used.rate, self.limit - used - self.reserved
        return left if left > 0.0 else 0.0, used / rate if rate else self.seconds_to_reset(now)

    def is_used_up(self, now: float) -> bool:
        """Return whether the limit is reached. See `Meter.is_used_up`."""
        return self.used.advance(now) + self._unit > self.limit + _EPSILON or self.used.amount >= self.limit

    def seconds_to_room(self, now: float) -> float:
        """Return after how many seconds there is room. See `Meter.seconds_to_room`."""
        if self.has_room(now):
            return 0.0
        return seconds_to_room(self.used, self.reserved, self.limit, self._unit, now)

    def seconds_to_reset(self, now: float) -> float:
        """Return after how many seconds nothing is used. See `Meter.seconds_to_reset`."""
        return self.used.seconds_until(0.0, now) if self.used.advance(now) else 0.0
