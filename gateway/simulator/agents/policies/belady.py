"""Belady's eviction (1966): the extent whose next use is furthest away goes first. It knows the future.

It bounds the hit rate that an eviction policy can reach; no server can run it. Order and pauses are those of `myna`:
the hit rate depends on them as much, and first come, first served would be a bound for no other order. The next use of
an extent is the next request of its session that holds it. Its time is the recorded gaps until then, each from the
previous answer. Time in the engine is not known in advance and does not count. An extent that no later request holds
goes first of all.
"""

import math
from collections.abc import Mapping, Sequence

from gateway.simulator.agents.call import AgentCall
from gateway.simulator.agents.kv_pool import Extent, Path
from gateway.simulator.agents.policies.myna import MynaPolicy
from gateway.simulator.agents.policy import EngineFacts
from gateway.simulator.agents.sessions import RecordedSession


class BeladyPolicy(MynaPolicy):
    """Furthest next use first. See `AgentPolicy`."""

    name = "belady"

    def __init__(self, facts: EngineFacts) -> None:
        super().__init__(facts)
        self._offsets: list[list[float]] = []
        """Sum of the gaps before each request of each session, in seconds."""
        self._delays: list[float] = []
        """Arrival of each session, and the time that its calls spent in the engine, in seconds."""
        self._users: dict[Extent, dict[int, list[int]]] = {}
        """Requests of each session that hold an extent, the next one last."""
        self._started: set[tuple[int, int]] = set()

    def prepare(
        self, sessions: Sequence[RecordedSession], paths: Sequence[Sequence[Path]], arrivals: Sequence[float]
    ) -> None:
        """Look at the future. See `AgentPolicy.prepare`."""
        self._delays = list(arrivals)
        for number, session in enumerate(sessions):
            offsets: list[float] = []
            for index, request in enumerate(session.requests):
                offsets.append(request.pause + (offsets[request.after] if request.after >= 0 else 0.0))
                for extent in paths[number][index]:
                    self._users.setdefault(extent, {}).setdefault(number, []).append(index)
            self._offsets.append(offsets)
        for by_session in self._users.values():
            for indices in by_session.values():
                indices.reverse()

    def arrive(self, call: AgentCall, now: float) -> None:
        """Learn when the call arrived."""
        super().arrive(call, now)
        self._delays[call.session] = call.issued - self._offsets[call.session][call.index]

    def admit(self, call: AgentCall, now: float) -> None:
        """Record that the call needs its extents no more later on."""
        super().admit(call, now)
        self._started.add((call.session, call.index))

    def preempt(self, call: AgentCall, now: float) -> None:
        """Record that the call needs its extents again."""
        super().preempt(call, now)
        for extent in call.path:
            indices = self._users.setdefault(extent, {}).setdefault(call.session, [])
            if call.index not in indices:
                indices.append(call.index)
        self._started.discard((call.session, call.index))

    def end(self, call: AgentCall, now: float) -> None:
        """Learn when the answer was complete."""
        super().end(call, now)
        self._delays[call.session] = now - self._offsets[call.session][call.index]

    def select(self, candidates: Mapping[Extent, None], now: float) -> Extent:
        """Return the extent whose next use is furthest away."""
        return max(candidates, key=lambda extent: (self._next_use(extent), extent.start))

    def _next_use(self, extent: Extent) -> float:
        """Return the time of the next use of an extent, in seconds, infinite if there is none."""
        earliest = math.inf
        for session, indices in self._users.get(extent, {}).items():
            while indices and (session, indices[-1]) in self._started:
                indices.pop()
            if indices:
                earliest = min(earliest, self._delays[session] + self._offsets[session][indices[-1]])
        return earliest
