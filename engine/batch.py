"""What goes into the next step: decode tokens first, then prefill chunks up to the token budget, in rank order."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from engine.context import Context
from engine.kv_cache import KVCache


@dataclass(frozen=True)
class Chunk:
    """Rows of one context in a step: `tokens[start:end]`. `samples`: whether the last row gets logits.

    `stored`: the KV of these rows is there already and must not be written (a whole prompt found in the tree
    still needs its last row for the logits).
    """

    context: Context
    start: int
    end: int
    samples: bool
    stored: bool = False


@dataclass
class Plan:
    """One step. `copies`: blocks (from, to) to copy first. `preempted`: contexts that lost their blocks."""

    chunks: list[Chunk] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    preempted: list[Context] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Tokens in the step."""
        return sum(chunk.end - chunk.start for chunk in self.chunks)


class BatchPlanner:
    """Chooses rows and finds memory for them.

    When the pool is full, blocks that only the tree holds go first (the cache sees to it), then contexts with
    nothing to do, then the runnable ones of lowest rank below the one that asks. The first candidate can
    therefore always go on: nothing deadlocks.
    """

    def __init__(self, cache: KVCache, step_tokens: int, max_batch: int) -> None:
        self._cache = cache
        self._step_tokens = step_tokens
        self._max_batch = max_batch

    def plan(self, contexts: Iterable[Context]) -> Plan:
        """The next step over all contexts there are; empty if none can go on."""
        everyone = list(contexts)
        runnable = [context for context in everyone if context.has_work]
        runnable.sort(key=lambda context: (not context.decoding, context.priority))
        plan = Plan()
        budget = self._step_tokens
        for context in runnable:
            if budget <= 0 or len(plan.chunks) >= self._max_batch:
                break
            chunk = self._chunk(context, budget)
            if chunk is None:
                continue
            copies = self._reserve(context, chunk.end, everyone, plan)
            if copies is None:
                continue
            context.announce(chunk.end)
            plan.chunks.append(chunk)
            plan.copies.extend(copies)
            budget -= chunk.end - chunk.start
        return plan

    def _chunk(self, context: Context, budget: int) -> Chunk | None:
        if not context.adopt_cached():
            return None
        length = len(context.tokens)
        samples = context.generation is not None
        if context.computed == length:
            if samples:
                return Chunk(context, length - 1, length, samples=True, stored=True)
            return Chunk(context, length, length, samples=False)  # a fill found whole in the tree
        end = min(length, context.computed + budget)
        return Chunk(context, context.computed, end, samples=samples and end == length)

    def _reserve(self, context: Context, end: int, everyone: list[Context], plan: Plan) -> list[tuple[int, int]] | None:
        copies = context.reserve(end)
        if copies is not None:
            return copies
        busy = {id(chunk.context) for chunk in plan.chunks}
        idle = [c for c in everyone if c.blocks and c is not context and not c.has_work]
        lower = [c for c in everyone if c.blocks and c.has_work and c.priority > context.priority and id(c) not in busy]
        for group in (idle, lower):
            for victim in sorted(group, key=lambda c: c.priority, reverse=True):
                victim.drop_blocks()
                plan.preempted.append(victim)
                copies = context.reserve(end)
                if copies is not None:
                    return copies
        return None
