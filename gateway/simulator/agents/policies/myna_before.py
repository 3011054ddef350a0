"""The policy of myna before it knew programs: ranks of plain calls, and learned classes of blocks.

The rank of a call is its deadline as `gateway.scheduler.priority` computes it for a call without edges, with a client
that waits. It assumes that everything a session sent before is cached, as the index of prefixes does. Eviction is
`engine.kv.eviction.EvictionPolicy` itself, applied to extents in place of blocks.
"""

import math
from collections.abc import Mapping

from engine.kv.eviction import EvictionPolicy
from engine.kv.expectations import Expectation
from gateway.scheduler.priority import deadline_extension
from gateway.simulator.agents.call import AgentCall
from gateway.simulator.agents.kv_pool import Extent, KvPool
from gateway.simulator.agents.policy import AgentPolicy, EngineFacts

_TOKENS = 256.0
"""Assumed number of tokens of an answer until one was observed."""
_SMOOTHING = 0.1
"""Weight of a new observation in the average length of answers."""
_BLOCK = 16
"""Tokens of a block."""


class _Block:
    """Extent as the eviction policy sees it."""

    __slots__ = (
        "block",
        "candidates",
        "due_rank",
        "expectation",
        "extent",
        "last_release",
        "owner",
        "path",
        "read_count",
    )

    def __init__(self, extent: Extent, number: int) -> None:
        self.extent = extent
        self.block = self.path = number
        self.last_release = self.owner = 0
        self.read_count = 1
        self.due_rank: float | None = None
        self.expectation: Expectation | None = None
        self.candidates: Mapping[Extent, None] = {}

    @property
    def is_evictable(self) -> bool:
        """Whether no call holds the extent and none follows it."""
        return self.extent in self.candidates


class MynaBeforePolicy(AgentPolicy):
    """Earliest deadline first, with learned classes of blocks. See `AgentPolicy`."""

    name = "myna-before"

    def __init__(self, facts: EngineFacts) -> None:
        super().__init__(facts)
        self._tokens = _TOKENS
        self._ranks: dict[AgentCall, float] = {}
        self._eviction = EvictionPolicy(max(1, facts.capacity // _BLOCK))
        self._blocks: dict[Extent, _Block] = {}
        self._offered: dict[Extent, int] = {}
        """Time of release with which an extent was offered last, on the eviction policy's clock."""

    def arrive(self, call: AgentCall, now: float) -> None:
        """Compute the call's rank."""
        facts = self.facts
        step = facts.token_seconds + facts.key_seconds * call.length
        rows = facts.row_seconds * (call.recorded.prompt - call.recorded.shared)
        work = rows + self._tokens * math.sqrt(facts.row_seconds * step)
        self._ranks[call] = now + rows + self._tokens * step + deadline_extension(work)

    def admit(self, call: AgentCall, now: float) -> None:
        """Let the eviction policy learn from extents that are read again."""
        for extent in call.path:
            block = self._blocks.get(extent)
            if block is None:
                continue
            if extent.start + extent.length <= call.computed:
                self._eviction.record_reuse(block)
            else:
                self._eviction.record_recompute(block.path)

    def end(self, call: AgentCall, now: float) -> None:
        """Learn the length of the answer, and record the release of its prompt."""
        self._tokens += _SMOOTHING * (call.made - self._tokens)
        del self._ranks[call]
        self._release(call)

    def preempt(self, call: AgentCall, now: float) -> None:
        """Record the release of the call's memory, for which it will come back."""
        self._release(call)

    def _release(self, call: AgentCall) -> None:
        for extent in reversed(call.path):
            if extent.resident and not extent.pins:
                block = self._blocks.get(extent)
                if block is None:
                    block = self._blocks[extent] = _Block(extent, len(self._blocks))
                self._eviction.clock += max(0, extent.resident // _BLOCK - 1)
                block.last_release = self._eviction.record_release()
                block.read_count = extent.reads

    def order(self, call: AgentCall, pool: KvPool, now: float) -> tuple[float, ...]:
        """Return the call's rank, then the order of arrival."""
        return self._ranks[call], call.number

    def rank(self, call: AgentCall) -> float:
        """Return the call's rank. See `AgentPolicy.rank`."""
        return self._ranks[call]

    def select(self, candidates: Mapping[Extent, None], now: float) -> Extent:
        """Return the victim of the eviction policy."""
        for extent in candidates:
            block = self._blocks.get(extent)
            if block is None:
                block = self._blocks[extent] = _Block(extent, len(self._blocks))
            if self._offered.get(extent) != block.last_release:
                block.candidates = candidates
                self._offered[extent] = block.last_release
                self._eviction.offer(block)
        victim = self._eviction.select_victim()
        if not isinstance(victim, _Block):
            raise RuntimeError("no extent can be evicted")
        del self._offered[victim.extent]  # a part of it may stay, and is offered again
        return victim.extent
