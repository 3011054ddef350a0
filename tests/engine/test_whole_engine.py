"""Test of the whole engine without its arithmetic, against a slow model: 100,000 random operations.

The decoder is transparent: a slot holds a digest of the text up to its token, and logits are a function of all digests
that a row sees through its block table. A sequence that finds one wrong block generates another text than the model,
which only looks at the text.
"""

import random
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import Engine, EngineConfig, SamplingParams
from engine.errors import ContextError
from engine.kernels import AttentionBatch
from engine.kv.eviction import EvictionPolicy
from engine.kv.host_offload import Swaps
from engine.protocol import Update
from tests.fakes.checkpoints import VOCABULARY, write_tiny

OPERATIONS = 100_000
POISON = 13
"""A step over a row with this token raises."""
MUTE = 14
"""A row behind this token has NaN logits."""


def digest(before: int, token: int) -> int:
    return hash((before, token)) // 256 * 256 + token


def next_token(view: tuple[int, ...]) -> int:
    """Return the token after a text, by the digests of its prefixes. It is never an end, poisoned or suppressed token.
    Of five tokens after a token, four are equal, so that texts repeat themselves."""
    after = hash(view)
    return 20 + (after if after % 5 == 0 else (view[-1] % 256 * 31) % 11) % (250 - 20)


def expected_text(text: list[int], count: int) -> list[int]:
    """Return what a generate of `count` tokens after the text must yield."""
    text, outputs = list(text), []
    for _ in range(count):
        position, view = 0, []
        for token in text:
            position = digest(position, token)
            view.append(position)
        outputs.append(next_token(tuple(view)))
        text.append(outputs[-1])
    return outputs


class TransparentDecoder:
    """Replacement for the arithmetic of `Decoder`."""

    def __init__(self, engine: Engine) -> None:
        self.kernels = engine.decoder.kernels
        self.size = engine.config.block_size
        self.slots: dict[int, int] = {}
        self.random = random.Random(0)
        self.unlucky = 0
        self.host: dict[int, list[int]] = {}
        self.fetched = 0

    def copy_blocks(self, copies: list[tuple[int, int]]) -> None:
        if self.random.random() < 0.03:
            self.unlucky += 1
            raise RuntimeError("a copy that was not made")
        for source, target in copies:
            for inside in range(self.size):
                self.slots[target * self.size + inside] = self.slots.get(source * self.size + inside, 0)

    def swap(self, swaps: Swaps) -> None:
        size = self.size
        for block, slot in swaps.outs:
            self.host[slot] = [self.slots.get(block * size + inside, 0) for inside in range(size)]
        for slot, block in swaps.ins:
            self.fetched += 1
            self.slots |= {block * size + inside: held for inside, held in enumerate(self.host[slot])}

    def forward(self, tokens: torch.Tensor, batch: AttentionBatch, reference: torch.Tensor) -> torch.Tensor:
        tokens = self.kernels.stage(tokens, batch, reference).tokens
        ids, slots, positions = tokens.tolist(), batch.slots.tolist(), batch.positions.tolist()
        starts, tables = batch.query_starts.tolist(), batch.block_tables.tolist()
        views: dict[int, tuple[int, ...]] = {}
        requested = set(reference.tolist())
        for index, table in enumerate(tables):

            def slot(position: int, table: list[int] = table) -> int:
                return table[position // self.size] * self.size + position % self.size

            for row in range(starts[index], starts[index + 1]):
                if ids[row] == POISON:
                    raise RuntimeError("a poisoned token")
                position = positions[row]
                before = self.slots[slot(position - 1)] if position else 0
                own = digest(before, ids[row])
                if slots[row] < self.size:  # the scratch block: the KV must exist already
                    assert self.slots[slot(position)] == own
                else:
                    assert slots[row] == slot(position)
                    self.slots[slots[row]] = own
                if row in requested:
                    views[row] = tuple(self.slots[slot(place)] for place in range(position + 1))
        logits = torch.zeros(len(reference), VOCABULARY)
        for index, row in enumerate(reference.tolist()):
            if ids[row] == MUTE:
                logits[index] = torch.nan
            else:
                logits[index, next_token(views[row])] = 10.0
        return logits


@dataclass
class ExpectedContext:
    """Expected state of a context: its text, and its pending fills and generates."""

    text: list[int]
    scope: str
    fills: list[int] = field(default_factory=list)
    expected: list[int] = field(default_factory=list)
    generating: bool = False


class RandomOperations:
    """Random operations on an engine, and the account of their expected results."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self.engine = engine
        self.random = random.Random(seed)
        self.return_random = random.Random(seed)
        self.known: dict[int, ExpectedContext] = {}
        self.next_id = 0
        self.maximum = min(engine.info.window, engine.info.kv_tokens)
        self.finished = self.failed = self.preempted = self.retained = 0
        self._prefixes = [[self.random.randrange(20, 250) for _ in range(70)] for _ in range(4)]

    def tokens(self) -> list[int]:
        if self.random.random() < 0.6:  # a text that other contexts use as well
            return self.random.choice(self._prefixes)[: self.random.randrange(1, 70)]
        found = [self.random.randrange(20, 250) for _ in range(self.random.randrange(1, 30))]
        if self.random.random() < 0.06:
            found[-1] = self.random.choice((POISON, MUTE))
        return found

    def any(self) -> int | None:
        return self.random.choice(list(self.known)) if self.known else None

    def run_random_operation(self) -> None:
        kind = self.random.choices(
            ("begin", "more", "fork", "generate", "free", "rerank", "step"), (6, 4, 3, 8, 2, 3, 40)
        )[0]
        context = self.any()
        if kind == "begin" or (context is None and kind != "step"):
            if len(self.known) < 24:
                self.fill(None)
        elif kind == "step":
            self.step()
        elif context is not None:
            getattr(self, kind)(context)

    def fill(self, parent: int | None, tokens: list[int] | None = None) -> None:
        self.next_id += 1
        tokens = self.tokens() if tokens is None else tokens
        before = [] if parent is None else self.known[parent].text
        scope = self.random.choice("ab") if parent is None else self.known[parent].scope
        self.send(self.next_id, before, tokens, scope, parent)

    def send(self, id: int, before: list[int], tokens: list[int], scope: str, parent: int | None) -> None:
        known = self.known.get(id)
        refusal: ContextError | None = None
        try:
            self.engine.fill(id, tokens, parent=parent, rank=self.random.random(), scope=scope)
        except ContextError as error:
            refusal = error
        if refusal is not None:
            busy = known is not None and known.generating
            assert refusal.code == ("context_busy" if busy else "context_length_exceeded")
            assert busy or len(before) + len(tokens) > self.maximum
            return
        if known is None:
            known = self.known[id] = ExpectedContext(list(before), scope)
        known.text += tokens
        known.fills.append(len(known.text))

    def more(self, context: int) -> None:
        self.send(context, self.known[context].text, self.tokens(), self.known[context].scope, None)

    def fork(self, context: int) -> None:
        if not self.known[context].generating and len(self.known) < 24:
            self.fill(context, self.tokens() if self.random.random() < 0.7 else [])

    def generate(self, context: int) -> None:
        known = self.known[context]
        count = self.random.randrange(1, 12)
        room = min(self.engine.info.window, self.engine.info.kv_tokens + 1) - len(known.text)
        one = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)
        if known.generating or room <= 0:
            with pytest.raises(ContextError):
                self.engine.generate(context, one)
            return
        self.engine.generate(context, one)
        known.generating = True
        known.expected = expected_text(known.text, min(count, room))

    def free(self, context: int) -> None:
        last_block = self.engine.free_context(context)
        if last_block is not None and self.return_random.random() < 0.7:
            self.engine.retain(last_block, sorted(self.return_random.choices((0.0, 0.5, 5.0, 60.0), k=3)))
            self.retained += 1
        del self.known[context]

    def rerank(self, context: int) -> None:
        self.engine.rerank([context], self.random.random())

    def step(self) -> None:
        had_work = self.engine.has_work
        updates = self.engine.step()
        assert had_work or not updates
        for update in updates:
            self.take(update)

    def take(self, update: Update) -> None:
        known = self.known[update.context]
        if update.error is not None:
            self.failed += 1
            code = update.error[0]
            decoder: Any = self.engine.decoder
            if "a copy that" in update.error[1]:
                assert decoder.unlucky > 0
                decoder.unlucky -= 1
            else:
                assert code == ("step_failed" if POISON in known.text else "bad_logits"), update.error
            assert code != "bad_logits" or known.text[-1] == MUTE
            del self.known[update.context]
            return
        if update.filled is not None:
            while known.fills and known.fills[0] <= update.filled:
                known.fills.pop(0)
        for token in update.tokens:
            assert known.generating
            assert token == known.expected.pop(0), "the text differs from the expected one"
            known.text.append(token)
        if update.finish is not None:
            assert update.finish == "length"
            assert not known.expected
            known.generating = False
            self.finished += 1


@pytest.fixture(params=["one by one", "speculating", "overlapping", "overlapping, with host offload"])
def engine(tmp_path: Path, request: pytest.FixtureRequest) -> Engine:
    """Return an engine with a window of 120 tokens and a pool of 320: two or three contexts fill it."""
    folder = str(write_tiny(tmp_path, window=120))
    overlap: Any = "on" if "overlapping" in request.param else "off"
    speculation: Any = "on" if request.param == "speculating" else "off"
    host_offload = 240 if "host offload" in request.param else 0
    created = Engine(
        EngineConfig(
            model=folder,
            kv_tokens=320,
            step_tokens=48,
            max_batch=8,
            overlap=overlap,
            speculation=speculation,
            host_kv_tokens=host_offload,
        )
    )
    blocks = created.info.kv_tokens // created.info.block_size
    clock = partial(next, count(0.0, 0.001))  # each look at it takes a millisecond
    created.cache._eviction_policy = EvictionPolicy(blocks, now=clock)
    created._step_budget.calibrate(1, 0.01)
    created._step_budget.calibrate(8, 0.01)  # one more row costs nothing, whatever the load of this machine
    stand_in: Any = TransparentDecoder(created)
    created.decoder = stand_in
    return created


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_hundred_thousand_random_operations(engine: Engine, seed: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL")  # failing steps log their stack traces
    run = RandomOperations(engine, seed)
    plan = engine._scheduler.plan

    def counted(*arguments: Any, **named: Any) -> Any:
        created = plan(*arguments, **named)
        run.preempted += len(created.preempted)
        return created

    engine._scheduler.plan = counted  # type: ignore[method-assign]
    for operation in range(OPERATIONS // 4):
        run.run_random_operation()
        if operation % 5 == 0:
            engine.check_integrity()
    for _ in range(5000):
        if not engine.has_work:
            break
        run.step()
    assert not engine.has_work, "work is left although no step makes progress"
    for context in list(run.known):
        assert not run.known[context].generating
        assert not run.known[context].fills
        run.free(context)
    engine.check_integrity()
    assert engine.free_tokens == engine.info.kv_tokens, "a block was lost"
    assert run.finished > 1000, run.finished
    assert run.retained > 100, run.retained
    assert run.failed > 10, "no failing token occurred"
    assert run.preempted > 500, "the pool was never full"
    decoder: Any = engine.decoder
    assert (decoder.fetched > 500) == (engine.cache.host_offload.slots > 0), decoder.fetched
    if engine._speculator is not None:
        assert engine._speculator.drafted_count > 2 * engine._speculator.accepted_count > 1000


def test_wrong_slot_is_detected(engine: Engine) -> None:
    """Test of the test: one wrong entry in one slot changes the generated text."""
    engine.fill(1, list(range(20, 60)))
    while engine.has_work:
        engine.step()
    decoder: Any = engine.decoder
    reference = expected_text(list(range(20, 60)), 50)
    engine.generate(1, SamplingParams(temperature=0.0, max_tokens=50, ignore_eos=True))
    block = engine._sequences[1].blocks[0]
    decoder.slots[block * 16 + 5] += 1
    outputs: list[int] = []
    while engine.has_work:
        outputs += [token for update in engine.step() for token in update.tokens]
    assert outputs != reference
