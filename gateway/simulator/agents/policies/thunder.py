"""ThunderAgent's policy (Kang et al., 2026: program-aware scheduling of agents).

A program is active or paused. The KV of all active programs, those in a tool included, must fit the pool; that of a
program in a tool counts less the longer the tool runs. If it does not fit, programs pause at a tool boundary, the
smallest first, because the cost of computing a context again grows with its square. Paused programs are restored, the
smallest first, when there is room again. KV of paused programs is evicted first, and least recently used within.
"""

from collections.abc import Mapping, Sequence

from gateway.simulator.agents.call import AgentCall
from gateway.simulator.agents.kv_pool import Extent, KvPool
from gateway.simulator.agents.policy import AgentPolicy, EngineFacts

_DECAY_SECONDS = 60.0
"""Time in a tool after which a program's KV counts half."""


class ThunderPolicy(AgentPolicy):
    """Programs pause at tool boundaries. See `AgentPolicy`."""

    name = "thunder"
    is_timed = True

    def __init__(self, facts: EngineFacts) -> None:
        super().__init__(facts)
        self._active: dict[tuple[int, str], int] = {}
        """Tokens of the active programs; each agent of a session counts as one."""
        self._in_tool: dict[tuple[int, str], float] = {}
        """Time since which an active program is in a tool."""

    def _demand(self, now: float) -> float:
        """Return the tokens that active programs are expected to hold."""
        return sum(
            tokens * (0.5 ** ((now - self._in_tool[chain]) / _DECAY_SECONDS) if chain in self._in_tool else 1.0)
            for chain, tokens in self._active.items()
        )

    def admit(self, call: AgentCall, now: float) -> None:
        """Let the call's program be active."""
        self._active[call.chain] = call.length
        self._in_tool.pop(call.chain, None)

    def end(self, call: AgentCall, now: float) -> None:
        """Pause programs in tools, the smallest first, until the others fit."""
        self._active[call.chain] = call.length + call.recorded.output
        self._in_tool[call.chain] = now
        excess = self._demand(now) - self.facts.capacity
        for chain in sorted(self._in_tool, key=lambda chain: self._active[chain]):
            if excess <= 0:
                return
            excess -= self._active.pop(chain)
            del self._in_tool[chain]

    def leave(self, session: int, now: float) -> None:
        """Forget a program."""
        for chain in [chain for chain in self._active if chain[0] == session]:
            del self._active[chain]
            self._in_tool.pop(chain, None)

    def order(self, call: AgentCall, pool: KvPool, now: float) -> tuple[float, ...]:
        """Return whether the program is paused, then the size of a paused one, then the order of arrival."""
        if call.chain in self._active:
            return (0, 0, call.number)
        return (1, call.length, call.number)

    def admits(self, call: AgentCall, waiting: Sequence[AgentCall], pool: KvPool, now: float) -> bool:
        """Return whether the program is active, or can be restored."""
        return call.chain in self._active or self._demand(now) + call.length <= self.facts.capacity

    def select(self, candidates: Mapping[Extent, None], now: float) -> Extent:
        """Return the least recently used extent of a paused program, or of any if there is none."""
        return min(candidates, key=lambda e: (e.chain in self._active, e.released, -e.start))
