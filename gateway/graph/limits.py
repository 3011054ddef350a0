"""Bounds that tenants share: all of them together hold at most so much, and none of them alone may hold all of it."""

from collections import Counter

_SHARE = 3 / 4
"""The part of a bound that one tenant alone may hold, where there may be others."""


class SharedBound:
    """Owner of how much of something each tenant holds.

    A tenant alone may hold three quarters of the bound. When all together hold the whole of it, a tenant is still let
    in as long as it holds less than an equal share of the bound, counted over the tenants that hold anything: so the
    one who took most cannot keep the others out. What all hold together stays below twice the bound.
    """

    def __init__(self, total: int, *, several: bool = True, own: int | None = None) -> None:
        """`several`: whether there can be more than one tenant; one alone may hold all. `own`: a lower bound for each
        tenant."""
        self.total = total
        self.own = max(1, int(total * _SHARE)) if several else total
        if own is not None:
            self.own = min(self.own, own)
        self._held: Counter[str] = Counter()
        self._sum = 0

    def held(self, tenant: str) -> int:
        """Return how much the tenant holds."""
        return self._held[tenant]

    def has_room(self, tenant: str, amount: int = 1) -> bool:
        """Return whether the tenant may hold so much more."""
        held = self._held.get(tenant, 0) + amount
        if held > self.own:
            return False
        if self._sum + amount <= self.total:
            return True
        return held <= self.fair_share(tenant)

    def fair_share(self, tenant: str) -> float:
        """Return the tenant's equal share of the bound."""
        return self.total / (len(self._held) + (tenant not in self._held))

    @property
    def is_full(self) -> bool:
        """Whether all tenants together hold the whole bound."""
        return self._sum >= self.total

    @property
    def greediest(self) -> str | None:
        """The tenant that holds most, if any holds something."""
        return max(self._held, key=self._held.__getitem__, default=None)

    def add(self, tenant: str, amount: int = 1) -> None:
        """Count what the tenant holds from now on. Raises nothing: ask `has_room` before."""
        self._held[tenant] += amount
        self._sum += amount

    def remove(self, tenant: str, amount: int = 1) -> None:
        """Count what the tenant no longer holds."""
        self._sum -= amount
        self._held[tenant] -= amount
        if not self._held[tenant]:
            del self._held[tenant]
