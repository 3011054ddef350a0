"""Scheduling of steps: decode tokens first, then prefill chunks up to the token budget, in order of rank."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from engine.admission import PromptAdmission
from engine.kv.cache import KVCache
from engine.sequence import TokenSequence
from engine.speculative import Speculator
from engine.step_budget import StepAllowance, StepBudget
from engine.step_policy import PrefillRows, background_decoders


class Chunk(NamedTuple):
    """Rows of one sequence in a step: `tokens[start:end]`. The last of them are `draft` and not part of the sequence
    yet.

    `samples`: whether the last row that is not drafted gets logits; all drafted rows do then as well.
    `is_stored`: the KV of these rows exists already and must not be written. A prompt that is wholly in the tree still
        needs its last row for the logits.
    """

    sequence: TokenSequence
    start: int
    end: int
    samples: bool
    is_stored: bool = False
    draft: Sequence[int] = ()


@dataclass
class Plan:
    """Rows of one step, and the operations before it.

    `copies`: blocks (from, to) to copy first. `preempted`: sequences that lost their blocks.
    `rows`: number of rows. `empty_chunks`: number of chunks without rows, which only report.
    `decoding`: number of sequences that decode; `interactive`: how many of them are interactive. `drafted_rows`:
        number of drafted rows.
    `prefill_cost`, `long`: cost of the rows of prompts, and of deferrable ones, see `StepAllowance`.
    `has_waiting_prompts`: whether a prompt got no rows.
    `over_budget`: sequences for which the step has no room. `out_of_memory`: sequences for whose prompts no blocks are
        free, or that wait so that others keep theirs.
    """

    chunks: list[Chunk] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    preempted: list[TokenSequence] = field(default_factory=list)
    rows: int = 0
    empty_chunks: int = 0
    decoding: int = 0
    interactive: int = 0
    drafted_rows: int = 0
    prefill_cost: float = 0.0
    long: float = 0.0
    has_waiting_prompts: bool = False
    over_budget: list[TokenSequence] = field(default_factory=list)
    out_of_memory: list[TokenSequence] = field(default_factory=list)


class StepScheduler:
    """Chooses the rows of a step and allocates their blocks.

    When the pool is full, the cache first evicts blocks of the tree that no sequence uses. Then sequences without work
    lose their blocks, then runnable ones with a higher rank than the sequence that needs a block. So the first
    candidate can always continue: nothing deadlocks. A sequence begins only if all its tokens fit and leave one block
    for each running sequence: otherwise it could lose its blocks again, and the work would be wasted.
    """

    def __init__(
        self,
        cache: KVCache,
        step_tokens: int,
        max_batch: int,
        step_budget: StepBudget | None = None,
        speculator: Speculator | None = None,
        admission: PromptAdmission | None = None,
    ) -> None:
        """Create a scheduler. Without a step budget, only `step_tokens` bounds a step. Without a speculator, there are
        no drafts. Without an admission, prompts never wait for others to keep their KV."""
        self._cache = cache
        self._step_tokens = step_tokens
        self._max_batch = max_batch
        self._step_budget = step_budget
        self._speculator = speculator
        self._admission = admission

    def plan(self, sequences: Iterable[TokenSequence], owners: list[TokenSequence] | None = None) -> Plan:
        """Return the next step over the sequences; it is empty if none can continue.

        `owners`: all sequences that may have to give up blocks, if there are more than `sequences`.
        """
        candidates = list(sequences)
        if owners is None:
            owners = candidates
        decoders: list[TokenSequence] = []
        prefills: list[TokenSequence] = []
        for sequence in candidates:
            if sequence.is_decoding:
                decoders.append(sequence)
            elif sequence.has_work:
                prefills.append(sequence)
        decoders.sort(key=_priority_of)
        prefills.sort(key=_priority_of)
        plan = Plan()
        paused: list[TokenSequence] = []
        if self._admission is not None:
            self._admission.admit_fitting(prefills, owners)
            paused = [sequence for sequence in prefills if not sequence.is_admitted]
            if paused:
                prefills = [sequence for sequence in prefills if sequence.is_admitted]
        if self._step_budget is not None:
            decoders = self._decoders_in_step(decoders, prefills, plan, self._step_budget)
        places = min(self._max_batch, self._step_tokens)
        spare = self._step_tokens - min(places, len(decoders))  # for tokens that grammars forced
        if self._step_budget is not None:
            spare = min(spare, self._step_budget.max_step_rows)
        drafts: dict[int, list[int]] = {}
        if self._speculator is not None:
            interactive = [sequence for sequence in decoders if sequence.is_interactive]
            rows = places - len(decoders)
            if interactive and self._step_budget is not None:
                rows = min(rows, self._step_budget.draft_rows(with_prefill=bool(prefills)))
            if not interactive and not any(_has_waiting_client(sequence) for sequence in prefills):
                interactive = decoders  # background drafts must not make the steps of interactive streams longer
            drafts = self._speculator.propose(interactive, rows, decoding=len(decoders), with_prefill=bool(prefills))
            spare = max(0, spare - sum(map(len, drafts.values())))
        for sequence in decoders:
            if len(plan.chunks) + plan.drafted_rows >= places:
                break
            position = sequence.computed_tokens
            only_last = position + 1 == len(sequence.tokens)  # another sequence may have taken its blocks in this plan
            if sequence.id in drafts and only_last and self._add_draft(plan, sequence, drafts[sequence.id]):
                continue
            rows = min(len(sequence.tokens) - position, 1 + spare)
            if rows == 1 and only_last and sequence.fits_last_block:
                plan.chunks.append(Chunk(sequence, position, position + 1, samples=True))
                plan.rows += 1
            else:
                spare -= max(0, (self._add(plan, sequence, rows, owners) or 0) - 1)
        plan.decoding = len(plan.chunks)
        plan.interactive = sum(chunk.sequence.is_interactive for chunk in plan.chunks)
        if prefills:
            self._prefill(plan, prefills, owners)
        if self._admission is not None and paused and not plan.chunks:
            first = paused.pop(0)
            self._admission.admit(first)  # an engine without other work loses more by waiting
            self._prefill(plan, [first], owners)
        plan.out_of_memory += paused
        return plan

    def _add_draft(self, plan: Plan, sequence: TokenSequence, draft: list[int]) -> bool:
        """Add a sequence's last token and its draft to the plan. Return False, and add nothing, if no blocks are free:
        no sequence loses a block for a draft."""
        position = sequence.computed_tokens
        copies = sequence.reserve(position + 1 + len(draft))
        if copies is None:
            return False
        sequence.announce(position + 1)
        plan.chunks.append(Chunk(sequence, position, position + 1 + len(draft), samples=True, draft=draft))
        plan.copies.extend(copies)
        plan.rows += 1 + len(draft)
        plan.drafted_rows += len(draft)
        return True

    def _decoders_in_step(
        self, decoders: list[TokenSequence], prefills: list[TokenSequence], plan: Plan, step_budget: StepBudget
    ) -> list[TokenSequence]:
        """Return the sequences that decode in this step, if not all can. See `background_decoders`."""
        interactive = sum(sequence.is_interactive for sequence in decoders)
        if interactive == len(decoders):
            return decoders
        background_rows = background_decoders(
            interactive,
            len(decoders) - interactive,
            has_interactive_prompts=any(sequence.is_interactive for sequence in prefills),
            step_budget=step_budget,
        )
        selected = []
        for sequence in decoders:
            if not sequence.is_interactive:
                background_rows -= 1
                if background_rows < 0:
                    plan.over_budget.append(sequence)
                    continue
            selected.append(sequence)
        return selected

    def _prefill(self, plan: Plan, prefills: list[TokenSequence], owners: list[TokenSequence]) -> None:
        room = self._step_tokens - plan.rows
        allowance = StepAllowance(room, room, room, room)
        step_budget = self._step_budget
        if step_budget is not None:
            mixed = any(sequence.is_interactive for sequence in prefills) and not all(
                sequence.is_interactive for sequence in prefills
            )
            allowance = step_budget.allow_rows(
                plan.decoding,
                interactive=plan.interactive,
                mixed=mixed,
                drafted=plan.drafted_rows,
                alone=not plan.decoding and len(prefills) == 1,
            )
        first_rank = plan.chunks[0].sequence.rank if plan.chunks else math.inf
        prefill_rows = PrefillRows(allowance, step_rows=room, interactive=plan.interactive, first_rank=first_rank)
        full = False
        for index, sequence in enumerate(prefills):
            if not prefill_rows.has_room(sequence.rank) or len(plan.chunks) + plan.drafted_rows >= self._max_batch:
                plan.has_waiting_prompts = True
                plan.over_budget += prefills[index:]
                break
            if full and not sequence.has_own_blocks:
                plan.out_of_memory.append(sequence)
                continue  # a smaller prompt must not overtake one that could not begin
            if not sequence.prompt_tokens:
                if not sequence.adopt_cached():
                    continue
                sequence.prompt_tokens = len(sequence.tokens) - sequence.computed_tokens
            kind = prefill_rows.kind_of(
                rank=sequence.rank,
                is_interactive=sequence.is_interactive,
                is_prefetch=sequence.generation is None and sequence.pooling is None,
                prompt_tokens=sequence.prompt_tokens,
            )
            allowed = prefill_rows.allowed(kind)
            if allowed <= 0:
                plan.has_waiting_prompts = True
                plan.over_budget.append(sequence)
                continue
            start = sequence.computed_tokens
            affordable = int(allowed) if step_budget is None else step_budget.affordable_rows(allowed, start)
            rows = self._add(plan, sequence, min(affordable, prefill_rows.step_rows), owners)
            if rows is None:
                full = True
                plan.out_of_memory.append(sequence)
                continue
            if rows:
                chunk = plan.chunks[-1]
                cost = float(rows) if step_budget is None else step_budget.cost(chunk.start, chunk.end)
                prefill_rows.take(kind, rows, cost)
                plan.prefill_cost += cost
        plan.long += prefill_rows.long_taken

    def _add(self, plan: Plan, sequence: TokenSequence, budget: int, owners: list[TokenSequence]) -> int | None:
        """Add the sequence's next rows to the plan, at most `budget`. Return their number, or None if no blocks are
        free."""
        chunk = self._chunk(sequence, budget)
        if chunk is None:
            return 0
        copies = self._reserve(sequence, chunk.end, owners, plan)
        if copies is None:
            if not sequence.has_own_blocks:
                sequence.drop_blocks()  # others may evict the blocks that it found in the tree while it waits
            return None
        if not chunk.is_stored:  # its blocks are committed already
            sequence.announce(chunk.end)
        plan.chunks.append(chunk)
        plan.copies.extend(copies)
        rows = chunk.end - chunk.start
        plan.rows += rows
        plan.empty_chunks += not rows
        return rows

    def _chunk(self, sequence: TokenSequence, budget: int) -> Chunk | None:
        if not sequence.adopt_cached():
            return None
        length = sequence.target_length
        samples = sequence.generation is not None or sequence.pooling is not None
        if sequence.computed_tokens == length:
            if samples:
                return Chunk(sequence, length - 1, length, samples=True, is_stored=True)
            # The tree holds the whole fill, or the fill has no full block.
            return Chunk(sequence, length, length, samples=False)
        end = min(length, sequence.computed_tokens + budget)
        return Chunk(sequence, sequence.computed_tokens, end, samples=samples and end == length)

    def _reserve(
        self, sequence: TokenSequence, end: int, owners: list[TokenSequence], plan: Plan
    ) -> list[tuple[int, int]] | None:
        if sequence.has_own_blocks or self._fits_whole(sequence, plan):
            copies = sequence.reserve(end)
            if copies is not None:
                return copies
        busy = {id(chunk.sequence) for chunk in plan.chunks}
        idle = [c for c in owners if c.blocks and c is not sequence and not c.has_work]
        lower = [c for c in owners if c.blocks and c.has_work and c.priority > sequence.priority and id(c) not in busy]
        for group in (idle, lower):
            for victim in sorted(group, key=_priority_of, reverse=True):
                victim.drop_blocks()
                plan.preempted.append(victim)
                if sequence.has_own_blocks or self._fits_whole(sequence, plan):
                    copies = sequence.reserve(end)
                    if copies is not None:
                        return copies
        # alone in a step, a sequence may use all free blocks: `fill` rejects tokens that do not fit the pool
        return None if plan.chunks else sequence.reserve(end)

    def _fits_whole(self, sequence: TokenSequence, plan: Plan) -> bool:
        missing = -(-len(sequence.tokens) // self._cache.block_size) - len(sequence.blocks)
        return self._cache.available >= missing + len(plan.chunks)


def _has_waiting_client(sequence: TokenSequence) -> bool:
    """Return whether a client waits for the prefill of the prompt. While an input is missing, the client waits for the
    call that produces the input."""
    return sequence.is_interactive and sequence.generation is not None


def _priority_of(sequence: TokenSequence) -> tuple[float, int]:
    return sequence.priority
