"""engine/step_budget.py and what the planner makes of it: how long prompts and readers share the steps."""

from collections.abc import Iterable

import pytest

from engine.generation import Generation
from engine.kv.cache import KVCache
from engine.protocol import SamplingParams
from engine.scheduler import StepScheduler
from engine.sequence import Context
from engine.step_budget import FEW_ROWS, StepBudget
from engine.tokenizer import Tokenizer

DECODE, ROW = 0.012, 0.0008


class Clock:
    """A machine whose steps take what they take, and a planner that has to find that out."""

    def __init__(self, tokenizer: Tokenizer, *, decode: float = DECODE, row: float = ROW) -> None:
        self.decode, self.row = decode, row
        self.cache = KVCache(4096, 16, sharing=False)
        self.pacer = StepBudget(decode_share=0.6, gap=0.1)
        self.pacer.learn(64, 64 * row * 0.7)  # a trial at the start is not the whole truth
        self.pacer.learn(1, decode * 1.5)
        self.planner = StepScheduler(self.cache, 512, 256, self.pacer)
        self.contexts: list[Context] = []
        self.now = 0.0
        self.rows: list[tuple[int, int]] = []
        """Of each step: those that decode, and those of prompts."""
        self.tokenizer = tokenizer

    def add(self, tokens: int, *, interactive: bool = True, generates: bool = True) -> Context:
        context = Context(len(self.contexts), self.cache, "", 0.0, len(self.contexts))
        context.tokens.extend(range(tokens))
        context.interactive = interactive
        context.fills.append(tokens)
        if generates:
            context.generation = Generation(SamplingParams(ignore_eos=True), self.tokenizer, [], 10_000)
        self.contexts.append(context)
        return context

    def step(self) -> float:
        plan = self.planner.plan(self.contexts)
        prefill = plan.rows - plan.decoding - plan.drafted
        seconds = (self.decode if plan.decoding else 0.0) + self.row * (prefill + plan.drafted)
        self.rows.append((plan.decoding, prefill))
        self.now += seconds
        self.pacer.observe(
            decoding=plan.decoding,
            interactive=plan.interactive,
            prefill=prefill,
            long=plan.long,
            waiting=plan.waiting,
            seconds=seconds,
            drafted=plan.drafted,
        )
        for chunk in plan.chunks:
            chunk.context.tokens.extend(chunk.drafted)
            chunk.context.commit(chunk.end)
            chunk.context.settle_fills()
            if chunk.samples and chunk.context.generation is not None:
                chunk.context.tokens.append(1)
                chunk.context.generation.push(1)
        return seconds


@pytest.mark.parametrize(("decode", "row"), [(DECODE, ROW), (0.011, 0.00016), (0.06, 0.004)])
def test_readers_keep_their_share_while_long_prompts_arrive(tokenizer: Tokenizer, decode: float, row: float) -> None:
    clock = Clock(tokenizer, decode=decode, row=row)
    readers = [clock.add(20) for _ in range(8)]
    for _ in range(30):
        clock.step()
    late = [clock.add(2000) for _ in range(4)]
    began, before = clock.now, sum(len(reader.tokens) for reader in readers)
    longest = 0.0
    while any(context.computed < 2000 for context in late):
        longest = max(longest, clock.step())
    made = sum(len(reader.tokens) for reader in readers) - before
    alone = (clock.now - began) / decode * 8
    assert made / alone >= 0.6 * 0.95
    assert longest <= 0.11 + decode
    assert clock.now - began < 1.2 * 8000 * row / 0.4, "and the prompts get all the rest"


def test_short_prompts_do_not_wait_for_their_share(tokenizer: Tokenizer) -> None:
    clock = Clock(tokenizer)
    clock.add(20)
    for _ in range(30):
        clock.step()
    short = clock.add(60)
    clock.step()
    assert short.generation is not None
    assert short.generation.started


def test_a_reader_keeps_its_share_beside_all_that_nobody_watches(tokenizer: Tokenizer) -> None:
    clock = Clock(tokenizer)
    reader = clock.add(20)
    for _ in range(30):
        clock.step()
    for _ in range(20):
        clock.add(40, interactive=False)
    clock.add(4000, interactive=False)
    clock.step()
    began, before = clock.now, len(reader.tokens)
    for _ in range(200):
        clock.step()
    assert (len(reader.tokens) - before) * DECODE / (clock.now - began) >= 0.6 * 0.9
    assert sum(context.computed for context in clock.contexts[1:]) > 1000, "and they get on"


def test_a_prompt_somebody_waits_for_does_not_wait_for_a_step_full_of_others(tokenizer: Tokenizer) -> None:
    for interactive, longest in ((False, 0.3), (True, 0.15)):
        clock = Clock(tokenizer)
        clock.add(2000, interactive=False)
        awaited = clock.add(40, interactive=interactive)
        awaited.rank = -1.0
        assert 0.5 * longest < clock.step() < longest
        assert awaited.decoding


def test_nobody_decoding_lets_a_prompt_have_whole_steps(tokenizer: Tokenizer) -> None:
    clock = Clock(tokenizer)
    clock.add(2000)
    steps = [clock.step() for _ in range(3)]
    assert max(steps) > 0.15
    assert max(steps) < 0.5


def test_where_nobody_watches_prompts_have_whole_steps_and_decoding_rides_along(tokenizer: Tokenizer) -> None:
    clock = Clock(tokenizer)
    clock.add(20, interactive=False)
    for _ in range(30):
        clock.step()
    clock.rows.clear()
    late = clock.add(2000, interactive=False)
    while not late.decoding:
        clock.step()
    assert all(decoding == 1 for decoding, _ in clock.rows)
    assert len(clock.rows) < 2000 * ROW / 0.2 + 4


def test_prompts_that_wait_for_something_ride_with_those_who_decode(tokenizer: Tokenizer) -> None:
    for interactive, least in ((True, 1), (False, 8)):
        clock = Clock(tokenizer)
        clock.add(20, interactive=interactive)
        for _ in range(30):
            clock.step()
        clock.rows.clear()
        ahead = clock.add(2000, generates=False)
        for _ in range(60):
            clock.step()
        carried = [prefill for _, prefill in clock.rows]
        assert sum(rows > 0 for rows in carried) > 50, "with nearly every step"
        assert carried.count(0) >= 3, "some are left bare, to learn what decoding takes"
        assert least * 50 < ahead.computed < 60 * 2.1 * DECODE / ROW, "but none has to wait long for it"


def test_a_step_that_was_held_up_teaches_little() -> None:
    pacer = StepBudget(decode_share=0.6, gap=0.1)
    pacer.learn(64, 64 * ROW)
    pacer.learn(1, DECODE)
    pacer.observe(decoding=8, interactive=8, prefill=0, long=0, waiting=False, seconds=60.0)
    pacer.observe(decoding=0, interactive=0, prefill=100, long=0, waiting=False, seconds=60.0)
    assert DECODE < pacer.decode_seconds < 1.5 * DECODE
    assert ROW < pacer.row_seconds < 1.5 * ROW
    for _ in range(30):
        pacer.observe(decoding=8, interactive=8, prefill=0, long=0, waiting=False, seconds=DECODE)
    assert pacer.decode_seconds == pytest.approx(DECODE, rel=0.01)


def test_less_urgent_prompts_ride_with_those_who_decode(tokenizer: Tokenizer) -> None:
    clock = Clock(tokenizer)
    urgent = clock.add(20, interactive=False)
    for _ in range(30):
        clock.step()
    clock.rows.clear()
    late = clock.add(4000, interactive=False)
    late.rank = urgent.rank + 1.0
    seconds = [clock.step() for _ in range(100)]
    assert max(seconds) < 3.8 * DECODE, "who decodes is not slowed down much"
    assert late.computed > 70 * 16, "nor does the prompt starve"
    assert [rows for _, rows in clock.rows].count(0) >= 5, "some are left bare, to learn what decoding takes"
    late.rank = urgent.rank
    assert max(clock.step() for _ in range(2)) > 0.15, "what is as urgent has whole steps"


def test_what_nobody_watches_pauses_where_all_together_would_be_too_many(tokenizer: Tokenizer) -> None:
    clock = Clock(tokenizer)
    crowd = [clock.add(4, interactive=False) for _ in range(100)]
    for at, context in enumerate(crowd):
        context.rank = float(at)
    for _ in range(20):
        clock.step()
    assert max(decoding for decoding, _ in clock.rows) == 100, "alone they all go on"
    reader, most = clock.add(40), clock.pacer.unwatched(1)
    reader.rank = 50.5
    clock.rows.clear()
    before = [len(context.tokens) for context in crowd]
    for _ in range(10):
        clock.step()
    assert reader.decoding
    assert max(decoding for decoding, _ in clock.rows) <= most + 1 < 100
    went_on = [len(context.tokens) > length for context, length in zip(crowd, before, strict=True)]
    assert went_on[: most - 1] == [True] * (most - 1), "the most urgent ones"
    assert not any(went_on[most + 1 :])
    clock.contexts.remove(reader)
    clock.step()
    assert clock.rows[-1][0] == 100


def test_what_drafts_take_is_not_taken_for_what_decoding_takes() -> None:
    """Else prompts would be let in by steps that are long anyway."""
    pacer = StepBudget(decode_share=0.65, gap=0.1)
    pacer.learn(1, 0.010)
    pacer.learn(FEW_ROWS, 0.010 + (FEW_ROWS - 1) * 0.0002)
    pacer.learn(100, 0.100)
    few, further = 6 * 0.0002, 14 * 0.001
    for _ in range(100):
        pacer.observe(
            decoding=2, interactive=2, prefill=0, long=0, waiting=True, drafted=20, seconds=0.0102 + few + further
        )
    assert abs(pacer.decode_seconds - 0.0102) < 1e-4
    assert abs(pacer.alone_seconds - 0.0102) < 1e-4


class Repeating:
    """Answers that go on as they went on before, for as long as they are asked: all drafts are right."""

    def propose(self, contexts: Iterable[Context], rows: int, *, among: int, beside: bool) -> dict[int, list[int]]:
        asked = list(contexts)
        each = min(31, rows // max(1, len(asked)))
        return {context.id: [1] * each for context in asked} if each else {}


def test_readers_who_draft_leave_prompts_their_part_and_nobody_waits_long(tokenizer: Tokenizer) -> None:
    clock = Clock(tokenizer)
    clock.planner._speculation = Repeating()  # type: ignore[assignment]
    readers = [clock.add(20) for _ in range(8)]
    for _ in range(60):
        clock.step()
    began, lengths = clock.now, sum(len(reader.tokens) for reader in readers)
    alone = [clock.step() for _ in range(40)]
    speed = (sum(len(reader.tokens) for reader in readers) - lengths) / (clock.now - began)
    assert max(alone) <= 0.1 + clock.row, "by themselves they draft as far as a step may last"
    assert speed > 1.5 * 8 / clock.decode, "which is worth it"
    prompt = clock.add(4000)
    began, lengths = clock.now, sum(len(reader.tokens) for reader in readers)
    steps = []
    while prompt.computed < 4000:
        steps.append(clock.step())
    beside = (sum(len(reader.tokens) for reader in readers) - lengths) / (clock.now - began)
    assert max(steps) <= 0.1 * 1.2
    assert beside > 0.4 * speed, "the readers keep their part"
    assert clock.now - began < 2 * 4000 * clock.row / (1 - 0.6), "and the prompt has its own"
