"""Durations of tools, learned for each tenant and tool: how long after an answer the next request of its agent arrives.

No clock here: the caller passes the time.
"""

from bisect import insort
from collections import OrderedDict, deque
from collections.abc import Sequence

SAMPLES = 128
"""Number of the latest durations that are remembered for each tool, and for each tenant."""
MAX_TOOLS = 1_000
"""Maximum number of tools of all tenants together that are remembered, some 35 MB in all."""
MAX_TOOLS_OF_TENANT = 100
"""Maximum number of tools of one tenant that are remembered."""
MAX_AGE_SECONDS = 86_400.0
"""Age, in seconds, from which a duration is forgotten as soon as there is a newer one."""
ENOUGH = 8
"""Number of durations from which a forecast relies on them alone."""


class _Durations:
    """Latest durations. `ordered` has them in ascending order."""

    __slots__ = ("_latest", "ordered")

    def __init__(self) -> None:
        self._latest: deque[tuple[float, float]] = deque()
        self.ordered: list[float] = []

    def add(self, seconds: float, now: float) -> None:
        self._latest.append((now, seconds))
        insort(self.ordered, seconds)
        while len(self._latest) > SAMPLES or self._latest[0][0] < now - MAX_AGE_SECONDS:
            self.ordered.remove(self._latest.popleft()[1])


class _Tenant:
    """Tools of a tenant, the most recently used last, and the durations of all of them together."""

    __slots__ = ("durations", "tools")

    def __init__(self) -> None:
        self.durations = _Durations()
        self.tools: OrderedDict[str, _Durations] = OrderedDict()


class ToolTimes:
    """Owner of the durations of tools.

    Three levels serve as a fallback for each other: the tool of the tenant, all tools of the tenant, and all tools of
    all tenants. The last level reveals to a tenant only a distribution of durations.
    """

    def __init__(self) -> None:
        self._tenants: OrderedDict[str, _Tenant] = OrderedDict()
        """Tenants, the most recently used last."""
        self._tools = 0
        self._all = _Durations()

    def __len__(self) -> int:
        return self._tools

    def observe(self, tenant: str, tool: str, seconds: float, now: float) -> None:
        """Record that a tool took so many seconds. `tool`: its name, or `tool_gaps.PERSON`.

        Raises ValueError if the duration is negative or not finite."""
        if not 0 <= seconds < float("inf"):
            raise ValueError(f"a tool cannot take {seconds} seconds")
        known = self._tenants.get(tenant)
        durations = None if known is None else known.tools.get(tool)
        if durations is None:
            self._make_room(known)
            known = self._tenants.setdefault(tenant, _Tenant())
            durations = known.tools[tool] = _Durations()
            self._tools += 1
        assert known is not None
        known.tools.move_to_end(tool)
        self._tenants.move_to_end(tenant)
        for level in (durations, known.durations, self._all):
            level.add(seconds, now)

    def _make_room(self, tenant: _Tenant | None) -> None:
        """Forget the least recently used tool: of a tenant that has its share, else of the tenant that was idle for the
        longest time."""
        if tenant is not None and len(tenant.tools) >= MAX_TOOLS_OF_TENANT:
            tenant.tools.popitem(last=False)
            self._tools -= 1
        elif self._tools >= MAX_TOOLS:
            name, idlest = next(iter(self._tenants.items()))
            idlest.tools.popitem(last=False)
            self._tools -= 1
            if not idlest.tools:
                del self._tenants[name]

    def forecast(self, tenant: str, tool: str) -> Sequence[float]:
        """Return the durations to expect, in seconds, in ascending order; empty before anything was learned.

        The caller must not change the list, and must not keep it beyond the next observation.
        """
        known = self._tenants.get(tenant)
        if known is not None:
            durations = known.tools.get(tool)
            if durations is not None and len(durations.ordered) >= ENOUGH:
                return durations.ordered
            if len(known.durations.ordered) >= ENOUGH:
                return known.durations.ordered
        return self._all.ordered
