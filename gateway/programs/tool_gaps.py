"""Gaps between an answer of a program and the request that extends it: tools run, or a person reads. Pure."""

from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import NamedTuple

from gateway.programs.program import ProgramCall
from gateway.programs.shared_table import SharedTable
from gateway.programs.tool_times import ToolTimes

PERSON = ""
"""Name, in place of a tool's, for the gap after an answer that calls no tools."""
MAX_GAP_SECONDS = 3_600.0
"""Maximum length of a gap, in seconds; longer gaps count as this long. Clients do not report that an agent has ended,
so forecasts include agents that never return."""
MAX_GAPS = 50_000
"""Maximum number of gaps of all tenants together that are watched. If there are more, the oldest one of the tenant with
the most is dropped."""
MAX_EXPIRED = 8
"""Maximum number of gaps that one call of `expire` counts as ended. Each call of `begin` adds one gap."""
_MAX_FORGOTTEN = 256
"""Maximum number of gaps that one call of `forget_some` forgets."""


class _Gap(NamedTuple):
    """Gap since a time, of a tenant. `word`: see `word_of`."""

    since: float
    tenant: str
    word: str


class EndedGap(NamedTuple):
    """Gap that has ended: its duration and its end, in seconds. `word`: see `word_of`."""

    tenant: str
    word: str
    seconds: float
    ended: float


class ToolGaps:
    """Owner of the gaps that have not ended. It teaches `ToolTimes` how long they take."""

    def __init__(self, times: ToolTimes | None = None) -> None:
        self.times = times or ToolTimes()
        self.on_ended: Callable[[EndedGap], object] = lambda gap: None
        """Called with each gap that ends, after `ToolTimes` has learned from it."""
        self._gaps: SharedTable[str, _Gap] = SharedTable(MAX_GAPS)
        """Gaps by the id of the call with the answer, the oldest first."""

    def __len__(self) -> int:
        return len(self._gaps)

    def begin(self, call: ProgramCall, now: float) -> Sequence[float]:
        """Begin the gap after a call that has ended with an answer. Return the durations to expect, in seconds, in
        ascending order; the list may change with the next observation.

        `now`: seconds of any clock that does not go back, the same for all methods.
        """
        self.expire(now)
        tenant, word = call.program.tenant, word_of(call.tool_names)
        self._gaps.put(tenant, call.id, _Gap(now, tenant, word))
        return self.times.forecast(tenant, word)

    def end(self, call: ProgramCall, now: float) -> None:
        """End the gap before a call that extends an answer, and learn from it."""
        gap = None if call.parent is None else self._gaps.pop(call.parent.id)
        if gap is not None:
            self._learn(EndedGap(gap.tenant, gap.word, min(MAX_GAP_SECONDS, max(0.0, now - gap.since)), now))

    def expire(self, now: float) -> None:
        """Count gaps that last for too long as ended, at most `MAX_EXPIRED` of them, the oldest first."""
        for _ in range(MAX_EXPIRED):
            oldest = self._gaps.oldest()
            if oldest is None or now - oldest[1].since <= MAX_GAP_SECONDS:
                return
            id, gap = oldest
            self._gaps.pop(id)
            self._learn(EndedGap(gap.tenant, gap.word, MAX_GAP_SECONDS, now))

    def restore(self, gaps: Iterable[EndedGap], now: float) -> None:
        """Learn from gaps of the process before this one, without `on_ended`. See `ToolTimes.restore` for the order."""
        found: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for gap in gaps:
            found.setdefault((gap.tenant, gap.word), []).append((min(gap.ended, now), gap.seconds))
        for (tenant, word), durations in sorted(found.items(), key=lambda item: max(item[1]), reverse=True):
            self.times.restore(tenant, word, durations)

    def _learn(self, gap: EndedGap) -> None:
        self.times.observe(gap.tenant, gap.word, gap.seconds, gap.ended)
        self.on_ended(gap)

    def forget_some(self, tenant: str) -> bool:
        """Forget gaps of a tenant, and what was learned from its earlier ones. Return False once
        there are none."""
        self.times.forget_tenant(tenant)
        return bool(self._gaps.pop_tenant(tenant, _MAX_FORGOTTEN))


def word_of(tool_names: Sequence[str]) -> str:
    """Return the word for the tools that an answer calls: a digest of their names, in any order, each once.

    It is stored; readers of the database do not see the names, but can check a name that they guess.
    """
    if not tool_names:
        return PERSON
    return blake2b("\0".join(sorted(set(tool_names))).encode(errors="surrogatepass"), digest_size=16).hexdigest()
