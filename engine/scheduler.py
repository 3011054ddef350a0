"""What goes into the next step: decode tokens first, then prefill chunks up to the token budget, in rank order."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from engine.kv.cache import KVCache
from engine.sequence import Context
from engine.speculative import Speculator
from engine.step_budget import StepBudget

TOGETHER_SECONDS = 0.001
"""Seconds by which ranks may differ and still be of one urgency."""


class Chunk(NamedTuple):
    """Rows of one context in a step: `tokens[start:end]`, the last of them `drafted`, which are not the context's yet.
    `samples`: whether the last row that is gets logits, and all that are drafted do.

    `stored`: the KV of these rows is there already and must not be written (a whole prompt found in the tree
    still needs its last row for the logits).
    """

    context: Context
    start: int
    end: int
    samples: bool
    stored: bool = False
    drafted: Sequence[int] = ()


@dataclass
class Plan:
    """One step. `copies`: blocks (from, to) to copy first. `preempted`: contexts that lost their blocks.

    `decoding`: contexts that decode, `interactive` of them watched; `drafted`: rows of tokens that may come next;
    `long`: rows of prompts that wait for their share (see Pacer). `waiting`: whether a prompt was held back altogether.
    `empty`: chunks of no rows, which only report. `held`: contexts for which there was no room in the step; `starved`:
    those for whose prompts there was no memory.
    """

    chunks: list[Chunk] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    preempted: list[Context] = field(default_factory=list)
    rows: int = 0
    empty: int = 0
    decoding: int = 0
    interactive: int = 0
    drafted: int = 0
    long: int = 0
    waiting: bool = False
    held: list[Context] = field(default_factory=list)
    starved: list[Context] = field(default_factory=list)


class StepScheduler:
    """Chooses rows and finds memory for them.

    When the pool is full, blocks that only the tree holds go first (the cache sees to it), then contexts with
    nothing to do, then the runnable ones of lowest rank below the one that asks. The first candidate can
    therefore always go on: nothing deadlocks. A context begins only where all its tokens fit and leave those that
    run a block each: to begin, lose the blocks again and begin anew would waste the work.
    """

    def __init__(
        self,
        cache: KVCache,
        step_tokens: int,
        max_batch: int,
        pacer: StepBudget | None = None,
        speculation: Speculator | None = None,
    ) -> None:
        """Without a pacer, only `step_tokens` bounds a step. Without speculation, nothing is drafted."""
        self._cache = cache
        self._step_tokens = step_tokens
        self._max_batch = max_batch
        self._pacer = pacer
        self._speculation = speculation

    def plan(self, contexts: Iterable[Context], everyone: list[Context] | None = None) -> Plan:
        """The next step over the contexts; empty if none can go on. `everyone`: all who may have to give blocks,
        where that is more than `contexts`."""
        candidates = list(contexts)
        if everyone is None:
            everyone = candidates
        decoders: list[Context] = []
        others: list[Context] = []
        for context in candidates:
            if context.decoding:
                decoders.append(context)
            elif context.has_work:
                others.append(context)
        decoders.sort(key=_priority)
        others.sort(key=_priority)
        plan = Plan()
        if self._pacer is not None:
            decoders = self._urgent(decoders, others, plan, self._pacer)
        places = min(self._max_batch, self._step_tokens)
        spare = self._step_tokens - min(places, len(decoders))  # for what grammars forced
        if self._pacer is not None:
            spare = min(spare, self._pacer.whole)
        drafts: dict[int, list[int]] = {}
        if self._speculation is not None:
            interactive = [context for context in decoders if context.interactive]
            rows = places - len(decoders)
            if interactive and self._pacer is not None:
                rows = min(rows, self._pacer.draftable(beside=bool(others)))
            if not interactive and not any(_hurried(context) for context in others):
                interactive = decoders  # else nobody's steps are made longer for what nobody watches
            drafts = self._speculation.propose(interactive, rows, among=len(decoders), beside=bool(others))
            spare = max(0, spare - sum(map(len, drafts.values())))
        for context in decoders:
            if len(plan.chunks) + plan.drafted >= places:
                break
            at = context.computed
            only_last = at + 1 == len(context.tokens)  # another may have taken its blocks in this very plan
            if context.id in drafts and only_last and self._check(plan, context, drafts[context.id]):
                continue
            rows = min(len(context.tokens) - at, 1 + spare)
            if rows == 1 and only_last and context.has_room:
                plan.chunks.append(Chunk(context, at, at + 1, samples=True))
                plan.rows += 1
            else:
                spare -= max(0, (self._add(plan, context, rows, everyone) or 0) - 1)
        plan.decoding = len(plan.chunks)
        plan.interactive = sum(chunk.context.interactive for chunk in plan.chunks)
        if others:
            self._prefill(plan, others, everyone)
        return plan

    def _check(self, plan: Plan, context: Context, drafted: list[int]) -> bool:
        """Puts the context's last token into the plan, and behind it what may come next. False, and nothing of it, if
        memory lacks: nobody loses a block for a guess."""
        at = context.computed
        copies = context.reserve(at + 1 + len(drafted))
        if copies is None:
            return False
        context.announce(at + 1)
        plan.chunks.append(Chunk(context, at, at + 1 + len(drafted), samples=True, drafted=drafted))
        plan.copies.extend(copies)
        plan.rows += 1 + len(drafted)
        plan.drafted += len(drafted)
        return True

    def _urgent(self, decoders: list[Context], others: list[Context], plan: Plan, pacer: StepBudget) -> list[Context]:
        """Those who decode in this step, if not all can: were a client's answer to keep pace with all that nobody
        watches, it would crawl, and so would prompts. The less urgent ones pause until it is their turn."""
        interactive = sum(context.interactive for context in decoders)
        if interactive == len(decoders) or not (interactive or any(context.interactive for context in others)):
            return decoders
        room = pacer.unwatched(interactive)
        chosen = []
        for context in decoders:
            if not context.interactive:
                room -= 1
                if room < 0:
                    plan.held.append(context)
                    continue
            chosen.append(context)
        return chosen

    def _prefill(self, plan: Plan, others: list[Context], everyone: list[Context]) -> None:
        budget = self._step_tokens - plan.rows
        most = long = behind = ahead = budget
        if self._pacer is not None:
            mixed = any(context.interactive for context in others) and not all(
                context.interactive for context in others
            )
            most, long, behind, ahead = self._pacer.rows(
                plan.decoding, interactive=plan.interactive, mixed=mixed, drafted=plan.drafted
            )
            budget = min(budget, most)
        first = plan.chunks[0].context.rank + TOGETHER_SECONDS if plan.chunks else math.inf
        full = False
        for place, context in enumerate(others):
            follows = context.rank > first
            if budget <= 0 or (follows and behind <= 0) or len(plan.chunks) + plan.drafted >= self._max_batch:
                plan.waiting = True
                plan.held += others[place:]
                break
            if full and not context.begun:
                plan.starved.append(context)
                continue  # who could not begin is not overtaken by a smaller one
            if not context.prompt:
                if not context.adopt_cached():
                    continue
                context.prompt = len(context.tokens) - context.computed
            is_long = plan.interactive > 0 and (context.prompt > most or not context.interactive)
            waits = context.generation is None  # for what stands behind: nobody is held up by it yet
            allowed = min(
                budget, long if is_long else budget, behind if follows else budget, ahead if waits else budget
            )
            if allowed <= 0:
                plan.waiting = True
                plan.held.append(context)
                continue
            rows = self._add(plan, context, allowed, everyone)
            if rows is None:
                full = True
                plan.starved.append(context)
                continue
            budget -= rows
            if follows:
                behind -= rows
            if waits:
                ahead -= rows
            if is_long:
                long -= rows
                plan.long += rows

    def _add(self, plan: Plan, context: Context, budget: int, everyone: list[Context]) -> int | None:
        """Puts the context's next rows into the plan, at most `budget`. Returns how many; None if memory lacks."""
        chunk = self._chunk(context, budget)
        if chunk is None:
            return 0
        copies = self._reserve(context, chunk.end, everyone, plan)
        if copies is None:
            if not context.begun:
                context.drop_blocks()  # what it found in the tree is not kept from others while it waits
            return None
        context.announce(chunk.end)
        plan.chunks.append(chunk)
        plan.copies.extend(copies)
        rows = chunk.end - chunk.start
        plan.rows += rows
        plan.empty += not rows
        return rows

    def _chunk(self, context: Context, budget: int) -> Chunk | None:
        if not context.adopt_cached():
            return None
        length = context.wanted
        samples = context.generation is not None
        if context.computed == length:
            if samples:
                return Chunk(context, length - 1, length, samples=True, stored=True)
            return Chunk(context, length, length, samples=False)  # a fill found whole in the tree, or of no full block
        end = min(length, context.computed + budget)
        return Chunk(context, context.computed, end, samples=samples and end == length)

    def _reserve(self, context: Context, end: int, everyone: list[Context], plan: Plan) -> list[tuple[int, int]] | None:
        if context.begun or self._fits_whole(context, plan):
            copies = context.reserve(end)
            if copies is not None:
                return copies
        busy = {id(chunk.context) for chunk in plan.chunks}
        idle = [c for c in everyone if c.blocks and c is not context and not c.has_work]
        lower = [c for c in everyone if c.blocks and c.has_work and c.priority > context.priority and id(c) not in busy]
        for group in (idle, lower):
            for victim in sorted(group, key=_priority, reverse=True):
                victim.drop_blocks()
                plan.preempted.append(victim)
                if context.begun or self._fits_whole(context, plan):
                    copies = context.reserve(end)
                    if copies is not None:
                        return copies
        # Whoever is alone takes what there is: its tokens fit the pool, or it would have been refused.
        return None if plan.chunks else context.reserve(end)

    def _fits_whole(self, context: Context, plan: Plan) -> bool:
        missing = -(-len(context.tokens) // self._cache.block_size) - len(context.blocks)
        return self._cache.available >= missing + len(plan.chunks)


def _hurried(context: Context) -> bool:
    """Whether somebody waits for the prompt to be read; not where a value is missing behind it, which others make."""
    return context.interactive and context.generation is not None


def _priority(context: Context) -> tuple[float, int]:
    return context.priority
