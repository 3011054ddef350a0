"""Fair shares of the engines' time between tenants, by weight: fair queueing by virtual time.

Each tenant has two clocks, which count seconds of work divided by its weight: of what it has asked for, and of that
what is done. Whoever has asked for less than another goes before it by as much, and so gets on average its share as
long as both have work. Who comes back from a pause goes on from where the least served of the others is: nothing is
saved up.
"""

from collections.abc import Mapping
from dataclasses import dataclass

_REMEMBERED = 10_000
"""Tenants that have nothing outstanding and are remembered all the same."""


@dataclass(slots=True)
class _Tenant:
    weight: float
    calls: int = 0
    asked: float = 0.0
    done: float = 0.0


class FairQueue:
    """Owner of the tenants' clocks."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        """`weights`: of those tenants for whom it is not 1; greater than 0."""
        self._weights = weights
        self._busy: dict[str, _Tenant] = {}
        self._resting: dict[str, _Tenant] = {}
        self._served = 0.0
        """What the least served of those who had work had been given, the last time anybody had."""

    def asked(self, tenant: str, work: float) -> float:
        """A call of the tenant comes, of so many seconds of work. Returns seconds by which it is behind the tenant that
        has asked for most; 0 or less."""
        known = self._busy.get(tenant)
        if known is None:
            self._move_on()
            known = self._resting.pop(tenant, None) or _Tenant(self._weights.get(tenant, 1.0))
            known.asked = known.done = max(known.done, self._served)
            self._busy[tenant] = known
        lead = 0.0 if len(self._busy) == 1 else known.asked - max([one.asked for one in self._busy.values()])
        known.calls += 1
        known.asked += work / known.weight
        return lead

    def done(self, tenant: str, work: float) -> None:
        """One of its calls has ended."""
        known = self._busy[tenant]
        known.calls -= 1
        known.done += work / known.weight
        if known.calls:
            return
        self._move_on()
        known.done = known.asked
        del self._busy[tenant]
        self._resting[tenant] = known
        if len(self._resting) > _REMEMBERED:
            self._resting = {name: one for name, one in self._resting.items() if one.done > self._served}

    def _move_on(self) -> None:
        if self._busy:
            self._served = max(self._served, min([one.done for one in self._busy.values()]))

    def unfinished(self) -> dict[str, int]:
        """Calls of those tenants that have some."""
        return {tenant: one.calls for tenant, one in self._busy.items()}
