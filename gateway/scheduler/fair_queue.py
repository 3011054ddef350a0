"""Fair queueing by virtual time: each tenant gets a share of the engines' time in proportion to its weight.

Each tenant has two clocks, which count seconds of work divided by its weight: of the work that it requested, and of the
work that is done. A tenant that requested less than another one goes first by the difference. So on average each tenant
gets its share as long as both have work. A tenant that was idle resumes at the clock of the least served busy tenant:
an idle tenant saves up nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass

_MAX_IDLE = 10_000
"""Maximum number of tenants without unfinished calls whose clocks are remembered."""


@dataclass(slots=True)
class _Tenant:
    weight: float
    calls: int = 0
    asked: float = 0.0
    done: float = 0.0


class FairQueue:
    """Owner of the tenants' clocks."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        """`weights`: weights of the tenants, greater than 0. A tenant that is not listed has weight 1. A change of a
        weight takes effect for new calls."""
        self._weights = weights
        self._busy: dict[str, _Tenant] = {}
        self._idle: dict[str, _Tenant] = {}
        self._served = 0.0
        """Done clock of the least served tenant, when a tenant last had work."""

    def request(self, tenant: str, work: float) -> float:
        """Count a new call of the tenant. `work` is in seconds.

        Return the tenant's clock minus that of the tenant that requested most, in seconds: 0 or negative.
        """
        state = self._busy.get(tenant)
        if state is None:
            self._advance()
            state = self._idle.pop(tenant, None) or _Tenant(1.0)
            state.asked = state.done = max(state.done, self._served)
            self._busy[tenant] = state
        lead = 0.0 if len(self._busy) == 1 else state.asked - max([other.asked for other in self._busy.values()])
        state.weight = self._weights.get(tenant, 1.0)
        state.calls += 1
        state.asked += work / state.weight
        return lead

    def finish(self, tenant: str, work: float) -> None:
        """Count a call of the tenant that has ended. `work`: the value that `request` received."""
        state = self._busy[tenant]
        state.calls -= 1
        state.done = min(state.asked, state.done + work / state.weight)  # the weight may have changed meanwhile
        if state.calls:
            return
        self._advance()
        state.done = state.asked
        del self._busy[tenant]
        self._idle[tenant] = state
        if len(self._idle) > _MAX_IDLE:
            self._idle = {name: state for name, state in self._idle.items() if state.done > self._served}

    def _advance(self) -> None:
        if self._busy:
            self._served = max(self._served, min([state.done for state in self._busy.values()]))

    def unfinished(self) -> dict[str, int]:
        """Return the number of unfinished calls of each tenant that has some."""
        return {tenant: state.calls for tenant, state in self._busy.items()}
