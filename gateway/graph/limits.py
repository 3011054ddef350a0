"""Limits of one session, and limits that all sessions share.

One tenant alone cannot use all of a limit that all tenants share.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

_SHARE = 3 / 4
"""Share of a limit that one tenant may use, if there can be several tenants."""
_SLACK = 1 / 64
"""Share of a limit that is free after tenants had to give up what they use."""


class SharedLimit:
    """Limit of one resource for all tenants together. It counts how much each tenant uses.

    One tenant may use at most three quarters of the limit. When all tenants together have reached the limit, a tenant
    is still admitted as long as it uses at most an equal share, counted over the tenants that use anything. So the
    largest user cannot keep the others out. The total stays below twice the limit.
    """

    def __init__(self, total: int, *, several: bool = True, own: int | None = None) -> None:
        """`total`: the limit. `several`: whether there can be more than one tenant; a single tenant may use all of it.
        `own`: a lower maximum for each tenant."""
        self.total = total
        self.own = max(1, int(total * _SHARE)) if several else total
        if own is not None:
            self.own = min(self.own, own)
        self._held: Counter[str] = Counter()
        self._sum = 0

    def amount(self, tenant: str) -> int:
        """Return the amount that the tenant uses."""
        return self._held[tenant]

    def has_room(self, tenant: str, amount: int = 1) -> bool:
        """Return whether the tenant may use `amount` more."""
        held = self._held.get(tenant, 0) + amount
        if held > self.own:
            return False
        if self._sum + amount <= self.total:
            return True
        return held <= self.fair_share(tenant)

    def fair_share(self, tenant: str) -> float:
        """Return the tenant's equal share of the limit."""
        return self.total / (len(self._held) + (tenant not in self._held))

    @property
    def is_full(self) -> bool:
        """Whether all tenants together have reached the limit."""
        return self._sum >= self.total

    @property
    def largest_holder(self) -> str | None:
        """The tenant that uses most; None if no tenant uses anything."""
        return max(self._held, key=self._held.__getitem__, default=None)

    def excess_holders(self) -> Iterator[str]:
        """Yield tenants with about an equal share or more, if all together have reached the limit, until they are below
        it by `_SLACK`. Remove something of each tenant before the next one.

        Sorting takes time in proportion to the tenants; because of the slack, that is rare.
        """
        goal = self.total - int(self.total * _SLACK)
        while self.is_full and self._held:
            share = goal / len(self._held)
            for number, tenant in enumerate(sorted(self._held, key=self._held.__getitem__, reverse=True)):
                if number and self._held[tenant] <= share:
                    break
                yield tenant
                while self._sum >= goal and self._held[tenant] > share:
                    yield tenant
                if self._sum < goal:
                    return

    def add(self, tenant: str, amount: int = 1) -> None:
        """Add to the amount that the tenant uses. It does not check the limit: call `has_room` before."""
        self._held[tenant] += amount
        self._sum += amount

    def remove(self, tenant: str, amount: int = 1) -> None:
        """Subtract from the amount that the tenant uses."""
        self._sum -= amount
        self._held[tenant] -= amount
        if not self._held[tenant]:
            del self._held[tenant]


@dataclass(frozen=True)
class SessionLimits:
    """Limits of one session. `edges`: inputs of all calls. `depth`: calls on a path through the graph. `value_bytes`:
    bytes of one value. `bytes`: bytes of all values and prompts. `waiters`: waiting requests."""

    calls: int = 10_000
    variables: int = 20_000
    edges: int = 100_000
    value_bytes: int = 1 << 20
    bytes: int = 256 << 20
    depth: int = 1_000
    waiters: int = 10_000


@dataclass(frozen=True)
class SharedLimits:
    """Limits of all sessions together: bytes of values and prompts, and waiting requests."""

    bytes: SharedLimit
    waiters: SharedLimit
