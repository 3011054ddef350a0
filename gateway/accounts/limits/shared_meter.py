"""Meters of limits that several gateways share: each uses allotments that it gets from the database.

An **allotment** is an amount that this gateway may use without asking. The database has, for each key and limit, the
amount that was used, and the allotments of each gateway. It grants an allotment only while `used + allotments < limit`.
A gateway admits requests while it has some of its allotment left, so all gateways together exceed a limit by at most
one request for each gateway.

The gateway reports what it used, returns what it does not need, and gets more in one exchange: when an allotment is
used up, and about once a second. If a gateway dies, the others delete its allotments.
"""

import math
from typing import NamedTuple

from gateway.accounts.limits.meter import UsedAmount, seconds_to_room
from gateway.accounts.limits.periods import window_at

_EPSILON = 1e-9
_MINUTE = 60.0
_DENIAL_SECONDS = 0.1
"""Time for which a denial holds, in seconds. Without it, each refused request would cost a transaction."""
_CHUNKS = 20
"""Number of allotments into which a limit is divided."""


class UsageReport(NamedTuple):
    """Report of a gateway about one limit in an exchange, and the amount that it requests.

    `window`: start of the current window. `rate`: amount that is refilled in a second. `used`: amount that was used
    since the last exchange. `held`: amount that unfinished requests have reserved. `wanted`: amount that it requests.
    """

    key: str
    kind: str
    window: float
    rate: float
    limit: float
    used: float
    held: float
    wanted: float


class UsageGrant(NamedTuple):
    """Answer of the database to a report: the granted amount, and what is used and allotted in all gateways.

    `granted` is negative if the limit is exceeded: requests reserve more than they use, and what they do not use must
    not be used by others then.
    """

    granted: float
    used: float
    others: float


class SharedMeter:
    """Meter of a limit that several gateways share. See `Meter`."""

    __slots__ = (
        "_allotment",
        "_denied_until",
        "_kind",
        "_others",
        "_unit",
        "_unreported",
        "_used",
        "is_active",
        "limit",
        "limit_text",
        "reserved",
    )

    def __init__(
        self, kind: str, limit: float, *, per_minute: bool = False, period: str | None = None, unit: float = 1.0
    ) -> None:
        """`kind`: name of the limit in the database. For the others, see `LocalMeter`."""
        self.limit = limit
        self.limit_text = str(int(limit))
        self.reserved = 0.0
        self.is_active = False
        """Whether requests used the meter since the last exchange."""
        self._kind = kind
        self._unit = unit
        self._allotment = 0.0
        """Amount that the database holds for this gateway, for `reserved`, `_unreported` and new requests."""
        self._unreported = 0.0
        """Amount that was used since the last exchange."""
        self._used = UsedAmount(rate=limit / _MINUTE if per_minute else 0.0, period=period)
        """Amount that all gateways had used at the last exchange."""
        self._denied_until = 0.0
        """Time until which the database is not asked again, because it has granted nothing."""
        self._others = 0.0
        """Allotments of other gateways at the last exchange."""

    def set_limit(self, limit: float) -> None:
        """Change the limit. What is used stays used."""
        self.limit = limit
        self.limit_text = str(int(limit))
        if self._used.rate:
            self._used.rate = limit / _MINUTE
        self._denied_until = 0.0
        self._allotment = self.reserved + self._unreported

    @property
    def _spare(self) -> float:
        return self._allotment - self.reserved - self._unreported

    def has_room(self, now: float) -> bool:
        """Return whether some of the allotment is left. See `Meter.has_room`."""
        self.is_active = True
        return self._spare >= self._unit - _EPSILON if self._unit else self._spare > _EPSILON

    def settle(self, reserved: float, amount: float, now: float) -> None:
        """Replace a reservation by what was used. See `Meter.settle`."""
        self.is_active = True
        self.reserved = max(0.0, self.reserved - reserved)
        self._unreported += amount

    def _level(self, now: float) -> float:
        return self._used.advance(now) + self._unreported + self.reserved + self._others

    def remaining(self, now: float) -> float:
        """Return how much was left at the last exchange, without what this gateway used since then."""
        return max(0.0, self.limit - self._level(now))

    def state(self, now: float) -> tuple[float, float]:
        """Return how much is left, and when nothing is used. See `Meter.state`."""
        return self.remaining(now), self.seconds_to_reset(now)

    def is_used_up(self, now: float) -> bool:
        """Return whether the limit is reached. See `Meter.is_used_up`."""
        used = self._used.advance(now) + self._unreported
        return used + self._unit > self.limit + _EPSILON or used >= self.limit

    def seconds_to_room(self, now: float) -> float:
        """Return after how many seconds there is room. See `Meter.seconds_to_room`."""
        others = self.reserved + self._unreported + self._others
        return seconds_to_room(self._used, others, self.limit, self._unit, now)

    def seconds_to_reset(self, now: float) -> float:
        """Return after how many seconds nothing is used. See `Meter.seconds_to_reset`."""
        return self._used.seconds_until(0.0, now) if self._used.advance(now) else 0.0

    def may_ask(self, now: float) -> bool:
        """Return whether an exchange may grant something. It does not if one has just granted nothing."""
        return now >= self._denied_until

    @property
    def needs_exchange(self) -> bool:
        """Whether the database does not know this gateway's current amounts, or holds some that it does not need."""
        return self.is_active or self._unreported > 0 or abs(self._spare) > _EPSILON

    def report(self, key: str, now: float, waiting: int) -> UsageReport:
        """Return the report for an exchange. Admit no request until its answer arrives: see `apply` and `abandon`.

        `waiting`: number of requests that wait for an allotment. If there is none and the meter was not used since the
        last exchange, the gateway keeps no allotment.
        """
        wanted = 0.0
        if self.is_active or waiting:
            # what waits enters together, each with one unit at least
            wanted = max(self._unit * waiting, self.limit / _CHUNKS, self._unit)
            if self._unit:
                wanted = math.ceil(wanted - _EPSILON)
        self.is_active = False
        self._allotment = self.reserved + self._unreported
        window = 0.0 if self._used.period is None else window_at(self._used.period, now).start
        return UsageReport(
            key, self._kind, window, self._used.rate, self.limit, self._unreported, self.reserved, wanted
        )

    def apply(self, report: UsageReport, grant: UsageGrant, now: float) -> None:
        """Apply the answer to a report."""
        self._unreported = max(0.0, self._unreported - report.used)
        self._allotment = report.held + grant.granted
        self._others = grant.others
        is_denied = report.wanted > 0 and grant.granted < max(self._unit, _EPSILON)
        self._denied_until = now + _DENIAL_SECONDS if is_denied else 0.0
        self._used.advance(now)
        self._used.amount = grant.used

    def used_at(self, now: float) -> float:
        """Return the amount that all gateways have used, as far as this gateway knows."""
        return self._used.advance(now) + self._unreported
