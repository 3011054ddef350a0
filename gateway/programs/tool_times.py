"""Durations of tools, learned for each tenant and tool: how long after an answer the next request of its agent arrives.

No clock here: the caller passes the time.
"""

from bisect import insort
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Sequence

from gateway.programs.shared_table import EntryCounts, SharedTable

SAMPLES = 128
"""Number of the latest durations that are remembered for each tool, for each tenant, and for all tenants together."""
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

    def restore(self, earlier: Iterable[tuple[float, float]]) -> None:
        self._latest = deque(_latest_of([*earlier, *self._latest]))
        self.ordered = sorted([seconds for _, seconds in self._latest])


class _SharedDurations:
    """Latest durations of all tenants. `ordered` has them in ascending order. A tenant with many durations loses its
    own oldest one first, so one tenant alone cannot decide what all others expect."""

    __slots__ = ("_latest", "_number", "ordered")

    def __init__(self) -> None:
        self._latest: SharedTable[int, tuple[float, float]] = SharedTable(SAMPLES)
        self._number = 0
        self.ordered: list[float] = []

    def add(self, tenant: str, seconds: float, now: float) -> None:
        self._number += 1
        forgotten = self._latest.put(tenant, self._number, (now, seconds))
        insort(self.ordered, seconds)
        while (oldest := self._latest.oldest()) is not None and oldest[1][0] < now - MAX_AGE_SECONDS:
            self._latest.pop(oldest[0])
            forgotten.append(oldest[1])
        self._remove(forgotten)

    def restore(self, tenant: str, earlier: Sequence[tuple[float, float]]) -> None:
        """`earlier`: in order of time."""
        entries = [(now, seconds, owner) for owner, (now, seconds) in self._latest.items()]
        if len(entries) == SAMPLES:  # a full table forgets what exceeds the entries of the tenant with the most
            earlier = earlier[-max(Counter(owner for _, _, owner in entries).values()) :]
        entries = sorted([*entries, *((now, seconds, tenant) for now, seconds in earlier)])
        oldest = entries[-1][0] - MAX_AGE_SECONDS
        self._latest = SharedTable(SAMPLES)
        for now, seconds, owner in entries:
            if now >= oldest:
                self._number += 1
                self._latest.put(owner, self._number, (now, seconds))
        self.ordered = sorted([seconds for _, (_, seconds) in self._latest.items()])

    def forget(self, tenant: str) -> None:
        self._remove(self._latest.pop_tenant(tenant))

    def _remove(self, forgotten: Iterable[tuple[float, float]]) -> None:
        for _, seconds in forgotten:
            self.ordered.remove(seconds)


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

    If there are too many tools, the tenant with the most tools forgets its least recently used one.
    """

    def __init__(self) -> None:
        self._tenants: dict[str, _Tenant] = {}
        self._tools = EntryCounts()
        self._all = _SharedDurations()

    def __len__(self) -> int:
        return len(self._tools)

    def observe(self, tenant: str, tool: str, seconds: float, now: float) -> None:
        """Record that a tool took so many seconds. `tool`: its name, or `tool_gaps.PERSON`.

        Raises ValueError if the duration is negative or not finite."""
        if not 0 <= seconds < float("inf"):
            raise ValueError(f"a tool cannot take {seconds} seconds")
        known = self._tenants.get(tenant)
        durations = None if known is None else known.tools.get(tool)
        if durations is None:
            known = self._tenants.setdefault(tenant, _Tenant())
            durations = known.tools[tool] = _Durations()
            self._tools.add(tenant)
            self._make_room(tenant)
        assert known is not None
        known.tools.move_to_end(tool)
        for level in (durations, known.durations):
            level.add(seconds, now)
        self._all.add(tenant, seconds, now)

    def restore(self, tenant: str, tool: str, earlier: Sequence[tuple[float, float]]) -> None:
        """Record the durations of an earlier process. `earlier`: when each was observed, and the duration, in seconds.

        It is as if they had been observed before all others, in order of time. Restore the tool that was used last
        first. A tool takes some 0.5 ms, because its durations are sorted together.
        """
        latest = _latest_of(earlier)
        if not latest:
            return
        known = self._tenants.setdefault(tenant, _Tenant())
        durations = known.tools.get(tool)
        if durations is None:
            durations = known.tools[tool] = _Durations()
            known.tools.move_to_end(tool, last=False)
            self._tools.add(tenant)
        durations.restore(latest)
        known.durations.restore(latest)
        self._all.restore(tenant, latest)
        self._make_room(tenant)

    def _make_room(self, tenant: str) -> None:
        """Forget the least recently used tool: of this tenant, if it has too many, else of the one with the most."""
        if self._tools.count(tenant) > MAX_TOOLS_OF_TENANT:
            self._forget_oldest(tenant)
        elif len(self._tools) > MAX_TOOLS:
            self._forget_oldest(self._tools.largest)

    def _forget_oldest(self, tenant: str) -> None:
        known = self._tenants[tenant]
        known.tools.popitem(last=False)
        self._tools.remove(tenant)
        if not known.tools:
            del self._tenants[tenant]

    def forget_tenant(self, tenant: str) -> None:
        """Forget all durations of a tenant, also those that others expect because of it."""
        known = self._tenants.pop(tenant, None)
        if known is not None:
            for _ in known.tools:
                self._tools.remove(tenant)
        self._all.forget(tenant)

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


def _latest_of(durations: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the latest durations in order of time, those that are not too old beside the newest one."""
    latest = sorted(durations)[-SAMPLES:]
    return [entry for entry in latest if entry[0] >= latest[-1][0] - MAX_AGE_SECONDS]
