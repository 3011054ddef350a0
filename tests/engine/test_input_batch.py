"""Tests of engine/input_batch.py: arrays reused over thousands of random steps, compared with new arrays."""

import random
from typing import Any

from engine.input_batch import InputBatch
from engine.kv.cache import SCRATCH, KVCache
from engine.scheduler import Plan, StepScheduler
from engine.sequence import TokenSequence

SIZE = 4


def expected_arrays(plan: Plan) -> dict[str, list[object]]:
    """Return the arrays that the kernels need for a plan."""
    chunks = [chunk for chunk in plan.chunks if chunk.end > chunk.start]
    rows = [(chunk, position) for chunk in chunks for position in range(chunk.start, chunk.end)]
    return {
        "tokens": [
            chunk.sequence.tokens[position]
            if position < len(chunk.sequence.tokens)
            else chunk.draft[position - chunk.end]
            for chunk, position in rows
        ],
        "positions": [position for _, position in rows],
        "slots": [
            SCRATCH * SIZE if chunk.is_stored else chunk.sequence.blocks[position // SIZE] * SIZE + position % SIZE
            for chunk, position in rows
        ],
        "starts": [sum(c.end - c.start for c in chunks[:n]) for n in range(len(chunks) + 1)],
        "lengths": [chunk.end for chunk in chunks],
        "tables": [chunk.sequence.blocks for chunk in chunks],
        "wanted": [
            rows.index((chunk, position))
            for chunk in chunks
            if chunk.samples
            for position in range(chunk.end - 1 - len(chunk.draft), chunk.end)
        ],
    }


def gathered(arrays: InputBatch, plan: Plan) -> dict[str, list[object]]:
    tokens, batch, expected = arrays.gather(plan)
    tables = []
    for chunk, row in zip([c for c in plan.chunks if c.end > c.start], batch.block_tables.tolist(), strict=True):
        held = len(chunk.sequence.blocks)
        assert row[held:] == [SCRATCH] * (len(row) - held), "a table is padded with the scratch block"
        tables.append(row[:held])
    return {
        "tokens": tokens.tolist(),
        "positions": batch.positions.tolist(),
        "slots": batch.slots.tolist(),
        "starts": batch.query_starts.tolist(),
        "lengths": batch.lengths.tolist(),
        "tables": tables,
        "wanted": expected.tolist(),
    }


class FakeGeneration:
    """Everything that a scheduler reads of a generation."""

    is_exhausted, pending, forced_count = False, 0, 0
    has_started = True


class FakeSpeculator:
    """Drafts random tokens for some sequences."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice

    def propose(
        self, decoders: list[TokenSequence], rows: int, *, decoding: int, with_prefill: bool
    ) -> dict[int, list[int]]:
        drafts = {}
        for sequence in decoders:
            count = self._dice.randrange(8)
            if 0 < count <= rows and len(sequence.tokens) == sequence.computed_tokens + 1:
                drafts[sequence.id] = [self._dice.randrange(9) for _ in range(count)]
                rows -= count
        return drafts


def test_reused_arrays_equal_new_arrays() -> None:
    dice = random.Random(4)
    cache = KVCache(400, SIZE)
    guesses: Any = FakeSpeculator(dice)
    planner = StepScheduler(cache, step_tokens=48, max_batch=12, speculator=guesses)
    arrays = InputBatch(48, 12, SIZE)
    contexts: list[TokenSequence] = []
    prefix = [dice.randrange(9) for _ in range(90)]
    widest = kinds = drafted = 0
    for number in range(6000):
        if len(contexts) < 16 and dice.random() < 0.2:
            one = TokenSequence(number, cache, "", dice.random(), number)
            if contexts and dice.random() < 0.3:
                one.fork_from(dice.choice(contexts))
            one.tokens += prefix[: dice.randrange(90)] + [dice.randrange(9) for _ in range(dice.randrange(1, 12))]
            one.pending_fills.append(len(one.tokens))
            contexts.append(one)
        plan = planner.plan(contexts)
        if plan.rows:
            assert gathered(arrays, plan) == expected_arrays(plan)
        kinds |= 1 << any(chunk.is_stored for chunk in plan.chunks) | 4 * bool(plan.decoding < plan.rows)
        widest = max(widest, *(len(chunk.sequence.blocks) for chunk in plan.chunks), 0)
        if dice.random() < 0.05:  # the step raises
            for chunk in reversed(plan.chunks):
                chunk.sequence.abort()
                chunk.sequence.drop_blocks()
            continue
        for chunk in plan.chunks:
            if not chunk.is_stored:
                chunk.sequence.commit(chunk.end - len(chunk.draft))
            one = chunk.sequence
            if one.finish_fills() is not None:
                one.generation = FakeGeneration()  # type: ignore[assignment]  # a generation that samples
            if chunk.samples:
                right = dice.randrange(len(chunk.draft) + 1)
                one.tokens += [*chunk.draft[:right], dice.randrange(9)]
                if chunk.draft:
                    drafted += 1
                    one.accept(chunk.end - len(chunk.draft) + right)
                    assert one.computed_tokens == len(one.tokens) - 1
                    assert len(one.blocks) == -(-one.computed_tokens // SIZE), (
                        "the blocks of rejected drafts are released"
                    )
        for one in [one for one in contexts if len(one.tokens) > 130 or dice.random() < 0.01]:
            contexts.remove(one)
            one.free()
    cache.check_integrity([one.blocks for one in contexts])
    assert drafted > 500
    assert widest > 16, "the tables grew"
    assert kinds == 7, "stored rows, other rows, and prefill next to decoding all occurred"
