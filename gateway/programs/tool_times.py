"""Durations of tools, learned for each tenant and tool: how long after an answer the next request of its agent arrives.

No clock here: the caller passes the time.
"""

from bisect import insort
from collections import OrderedDict, deque
from collections.abc import Sequence

SAMPLES = 128
"""Number of the latest durations that are remembered for each tool."""
MAX_TOOLS = 10_000
"""Maximum number of tools of all tenants together that are remembered. The least recently used ones are forgotten."""
MAX_TOOLS_OF_TENANT = 1_000
"""Maximum number of tools of one tenant that are remembered."""
HALF_LIFE = 86_400.0
"""Age, in seconds, after which a duration is forgotten as soon as there is a newer one."""
_ENOUGH = 8
"""Number of durations from which a forecast relies on the tool alone."""


class _Durations:
    """Latest durations of one tool. `ordered` has them in ascending order."""

    __slots__ = ("latest", "ordered")

    def __init__(self) -> None:
        self.latest: deque[tuple[float, float]] = deque()
        self.ordered: list[float] = []

    def add(self, seconds: float, now: float) -> None:
        self.latest.append((now, seconds))
        insort(self.ordered, seconds)
        while len(self.latest) > SAMPLES or self.latest[0][0] < now - HALF_LIFE:
            self.ordered.remove(self.latest.popleft()[1])


class ToolTimes:
    """Owner of the durations of tools.

    Three levels serve as a fallback for each other: the tool of the tenant, all tools of the tenant, and all tools of
    all tenants. The last one tells a tenant nothing about another but a distribution of seconds.
    """

    def __init__(self) -> None:
        self._tools: OrderedDict[tuple[str, str], _Durations] = OrderedDict()
        self._tenants: OrderedDict[str, _Durations] = OrderedDict()
        self._numbers: dict[str, int] = {}
        """Number of remembered tools by tenant."""
        self._all = _Durations()

    def __len__(self) -> int:
        return len(self._tools)

    def observe(self, tenant: str, tool: str, seconds: float, now: float) -> None:
        """Record that a tool took so many seconds. `tool`: its name, or another word for what the program waits for.
        Raises ValueError if the duration is negative or not finite."""
        if not 0 <= seconds < float("inf"):
            raise ValueError(f"a tool cannot take {seconds} seconds")
        durations = self._tools.get((tenant, tool))
        if durations is None:
            self._make_room(tenant)
            durations = self._tools[tenant, tool] = _Durations()
            self._numbers[tenant] = self._numbers.get(tenant, 0) + 1
        self._tools.move_to_end((tenant, tool))
        of_tenant = self._tenants.setdefault(tenant, _Durations())
        self._tenants.move_to_end(tenant)
        for known in (durations, of_tenant, self._all):
            known.add(seconds, now)

    def _make_room(self, tenant: str) -> None:
        """Forget the least recently used tool of a tenant that has its share, or of all."""
        if self._numbers.get(tenant, 0) >= MAX_TOOLS_OF_TENANT:
            self._forget(next(key for key in self._tools if key[0] == tenant))
        elif len(self._tools) >= MAX_TOOLS:
            self._forget(next(iter(self._tools)))

    def _forget(self, key: tuple[str, str]) -> None:
        del self._tools[key]
        tenant = key[0]
        self._numbers[tenant] -= 1
        if not self._numbers[tenant]:
            del self._numbers[tenant]
            del self._tenants[tenant]

    def forecast(self, tenant: str, tool: str) -> Sequence[float]:
        """Return the durations to expect, in seconds, in ascending order; empty before anything was learned.

        The caller must not change the list, and must not keep it beyond the next observation.
        """
        for durations in (self._tools.get((tenant, tool)), self._tenants.get(tenant)):
            if durations is not None and len(durations.ordered) >= _ENOUGH:
                return durations.ordered
        return self._all.ordered
