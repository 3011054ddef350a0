"""Continuum's policy (Li et al., 2025: KV cache time-to-live for multi-turn agents).

When an answer ends in a tool call, the program's KV is retained for a time to live. It is the time that maximises the
expected saving: the share of earlier tools that returned within it, times the cost of coming back without the KV, less
the time itself. The cost is that of computing the prompt again and of waiting in the queue again. Retained KV is not
evicted before its time. Programs run first come, first served by the arrival of the program; calls whose KV is retained
go first. Other KV is evicted least recently used first. If everything is retained and the engine would be idle, the
retention of the latest program ends.
"""

from bisect import insort
from collections import deque
from collections.abc import Mapping, Sequence

from gateway.simulator.agents.call import AgentCall
from gateway.simulator.agents.kv_pool import Extent, KvPool
from gateway.simulator.agents.policy import AgentPolicy, EngineFacts

_HISTORY = 512
"""Number of durations that are remembered for each kind of stop."""


class ContinuumPolicy(AgentPolicy):
    """Time to live from earlier durations; programs first come, first served. See `AgentPolicy`."""

    name = "continuum"
    is_timed = True

    def __init__(self, facts: EngineFacts) -> None:
        super().__init__(facts)
        self._programs: dict[int, int] = {}
        """Order of arrival by session."""
        self._ended: dict[tuple[int, str], tuple[float, str]] = {}
        """Time and stop of the latest answer of each chain in a pause."""
        self._durations: dict[str, deque[float]] = {}
        self._sorted: dict[str, list[float]] = {}
        self._until: dict[tuple[int, str], float] = {}
        """End of the retention of each chain."""
        self._queueing = 0.0
        """Average time in the queue, in seconds."""
        self._retained: dict[tuple[int, str], int] = {}
        """Tokens of retained KV by chain, at `_retained_at`: time, used and pinned tokens."""
        self._retained_tokens = 0
        self._retained_at = (-1.0, 0, 0)

    def arrive(self, call: AgentCall, now: float) -> None:
        """Learn the duration of the tool."""
        self._programs.setdefault(call.session, call.number)
        if (ended := self._ended.pop(call.chain, None)) is not None:
            since, stop = ended
            self._learn(stop, now - since)
            if self._until.get(call.chain, 0.0) >= now:
                self._until[call.chain] = float("inf")  # retained until it runs

    def _learn(self, stop: str, seconds: float) -> None:
        durations = self._durations.setdefault(stop, deque())
        ordered = self._sorted.setdefault(stop, [])
        durations.append(seconds)
        insort(ordered, seconds)
        if len(durations) > _HISTORY:
            ordered.remove(durations.popleft())

    def admit(self, call: AgentCall, now: float) -> None:
        """End the retention: the call holds its KV."""
        self._until.pop(call.chain, None)
        self._queueing += 0.05 * (now - call.issued - self._queueing)

    def end(self, call: AgentCall, now: float) -> None:
        """Retain the KV for the best time to live."""
        stop = call.recorded.stop
        self._ended[call.chain] = now, stop
        if stop != "end_turn":
            miss = call.context * self.facts.row_seconds + self._queueing
            if (seconds := self._time_to_live(stop, miss)) > 0:
                self._until[call.chain] = now + seconds

    def _time_to_live(self, stop: str, miss: float) -> float:
        """Return the best time to live, in seconds. `miss`: cost of coming back without the KV, in seconds."""
        ordered = self._sorted.get(stop, [])
        if not ordered:
            return miss
        best, best_saving = 0.0, 0.0
        for index, seconds in enumerate(ordered, 1):
            saving = index / len(ordered) * miss - seconds
            if saving > best_saving:
                best, best_saving = seconds, saving
        return best

    def leave(self, session: int, now: float) -> None:
        """Forget a program."""
        self._programs.pop(session, None)
        self._ended = {chain: ended for chain, ended in self._ended.items() if chain[0] != session}
        self._until = {chain: until for chain, until in self._until.items() if chain[0] != session}

    def order(self, call: AgentCall, pool: KvPool, now: float) -> tuple[float, ...]:
        """Return whether the call's KV is not retained, then the order of its program, then its own."""
        return (call.chain not in self._until, self._programs[call.session], call.number)

    def admits(self, call: AgentCall, waiting: Sequence[AgentCall], pool: KvPool, now: float) -> bool:
        """Return whether the call fits next to retained KV."""
        key = now, pool.used, pool.pinned
        if self._retained_at != key:
            self._retained_at = key
            self._retained = {}
            for extent in pool.candidates:
                if self._until.get(extent.chain, 0.0) >= now:
                    tokens = extent.start + extent.resident
                    self._retained[extent.chain] = self._retained.get(extent.chain, 0) + tokens
            self._retained_tokens = sum(self._retained.values())
        retained = self._retained_tokens - self._retained.get(call.chain, 0)
        return pool.unpinned(call.path) + retained <= pool.available

    def select(self, candidates: Mapping[Extent, None], now: float) -> Extent:
        """Return the least recently used extent that is not retained, else one of the latest program."""
        return min(candidates, key=lambda extent: self._eviction_key(extent, now))

    def _eviction_key(self, extent: Extent, now: float) -> tuple[float, float, int]:
        if self._until.get(extent.chain, 0.0) >= now:
            return 1.0, -self._programs.get(extent.chain[0], 0), -extent.start
        return 0.0, extent.released, -extent.start
