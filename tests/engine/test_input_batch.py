"""engine/input_batch.py: arrays kept over thousands of random steps against arrays made anew."""

import random
from typing import Any

from engine.input_batch import InputBatch
from engine.kv.cache import SCRATCH, KVCache
from engine.scheduler import Plan, StepScheduler
from engine.sequence import Context

SIZE = 4


def obvious(plan: Plan) -> dict[str, list[object]]:
    """What the kernels are to be told of a plan."""
    chunks = [chunk for chunk in plan.chunks if chunk.end > chunk.start]
    rows = [(chunk, at) for chunk in chunks for at in range(chunk.start, chunk.end)]
    return {
        "tokens": [
            chunk.context.tokens[at] if at < len(chunk.context.tokens) else chunk.drafted[at - chunk.end]
            for chunk, at in rows
        ],
        "positions": [at for _, at in rows],
        "slots": [
            SCRATCH * SIZE if chunk.stored else chunk.context.blocks[at // SIZE] * SIZE + at % SIZE
            for chunk, at in rows
        ],
        "starts": [sum(c.end - c.start for c in chunks[:n]) for n in range(len(chunks) + 1)],
        "lengths": [chunk.end for chunk in chunks],
        "tables": [chunk.context.blocks for chunk in chunks],
        "wanted": [
            rows.index((chunk, at))
            for chunk in chunks
            if chunk.samples
            for at in range(chunk.end - 1 - len(chunk.drafted), chunk.end)
        ],
    }


def gathered(arrays: InputBatch, plan: Plan) -> dict[str, list[object]]:
    tokens, batch, wanted = arrays.gather(plan)
    tables = []
    for chunk, row in zip([c for c in plan.chunks if c.end > c.start], batch.block_tables.tolist(), strict=True):
        held = len(chunk.context.blocks)
        assert row[held:] == [SCRATCH] * (len(row) - held), "behind a table's end stands the scratch block"
        tables.append(row[:held])
    return {
        "tokens": tokens.tolist(),
        "positions": batch.positions.tolist(),
        "slots": batch.slots.tolist(),
        "starts": batch.query_starts.tolist(),
        "lengths": batch.lengths.tolist(),
        "tables": tables,
        "wanted": wanted.tolist(),
    }


class Decoding:
    """All that a planner asks of a generation."""

    exhausted, pending, forced = False, 0, 0
    started = True


class Guesses:
    """Drafts some tokens for some contexts."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice

    def propose(self, decoders: list[Context], rows: int, *, among: int, beside: bool) -> dict[int, list[int]]:
        drafts = {}
        for context in decoders:
            count = self._dice.randrange(8)
            if 0 < count <= rows and len(context.tokens) == context.computed + 1:
                drafts[context.id] = [self._dice.randrange(9) for _ in range(count)]
                rows -= count
        return drafts


def test_arrays_that_are_kept_are_those_made_anew() -> None:
    dice = random.Random(4)
    cache = KVCache(400, SIZE)
    guesses: Any = Guesses(dice)
    planner = StepScheduler(cache, step_tokens=48, max_batch=12, speculation=guesses)
    arrays = InputBatch(48, 12, SIZE)
    contexts: list[Context] = []
    prefix = [dice.randrange(9) for _ in range(90)]
    widest = kinds = drafted = 0
    for number in range(6000):
        if len(contexts) < 16 and dice.random() < 0.2:
            one = Context(number, cache, "", dice.random(), number)
            if contexts and dice.random() < 0.3:
                one.fork_from(dice.choice(contexts))
            one.tokens += prefix[: dice.randrange(90)] + [dice.randrange(9) for _ in range(dice.randrange(1, 12))]
            one.fills.append(len(one.tokens))
            contexts.append(one)
        plan = planner.plan(contexts)
        if plan.rows:
            assert gathered(arrays, plan) == obvious(plan)
        kinds |= 1 << any(chunk.stored for chunk in plan.chunks) | 4 * bool(plan.decoding < plan.rows)
        widest = max(widest, *(len(chunk.context.blocks) for chunk in plan.chunks), 0)
        if dice.random() < 0.05:  # the step raised
            for chunk in reversed(plan.chunks):
                chunk.context.abort()
                chunk.context.drop_blocks()
            continue
        for chunk in plan.chunks:
            if not chunk.stored:
                chunk.context.commit(chunk.end - len(chunk.drafted))
            one = chunk.context
            if one.settle_fills() is not None:
                one.generation = Decoding()  # type: ignore[assignment]  # one that samples
            if chunk.samples:
                right = dice.randrange(len(chunk.drafted) + 1)
                one.tokens += [*chunk.drafted[:right], dice.randrange(9)]
                if chunk.drafted:
                    drafted += 1
                    one.accept(chunk.end - len(chunk.drafted) + right)
                    assert one.computed == len(one.tokens) - 1
                    assert len(one.blocks) == -(-one.computed // SIZE), "what wrong guesses took is given back"
        for one in [one for one in contexts if len(one.tokens) > 130 or dice.random() < 0.01]:
            contexts.remove(one)
            one.free()
    cache.check_integrity([one.blocks for one in contexts])
    assert drafted > 500
    assert widest > 16, "tables had to be widened"
    assert kinds == 7, "rows that were stored, rows that were not, and prefill beside decoding all came"
