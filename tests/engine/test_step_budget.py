"""Tests of engine/step_budget.py with the scheduler: how prompts and interactive sequences share the steps."""

from collections.abc import Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.generation import Generation
from engine.kv.cache import KVCache
from engine.sampling_params import SamplingParams
from engine.scheduler import StepScheduler
from engine.sequence import TokenSequence
from engine.step_budget import FEW_ROWS, StepBudget
from engine.tokenizer import Tokenizer

DECODE, ROW = 0.012, 0.0008


class SimulatedMachine:
    """A machine with given step durations, and a scheduler that has to learn them."""

    def __init__(self, tokenizer: Tokenizer, *, decode: float = DECODE, row: float = ROW) -> None:
        self.decode, self.row = decode, row
        self.cache = KVCache(4096, 16, shares_prefixes=False)
        self.step_budget = StepBudget(decode_share=0.6, max_step_seconds=0.1)
        self.step_budget.calibrate(64, 64 * row * 0.7)  # a trial at the start is inexact
        self.step_budget.calibrate(1, decode * 1.5)
        self.planner = StepScheduler(self.cache, 512, 256, self.step_budget)
        self.sequences: list[TokenSequence] = []
        self.now = 0.0
        self.rows: list[tuple[int, int]] = []
        """Number of decoding rows, and of prompt rows, of each step."""
        self.tokenizer = tokenizer

    def add(self, tokens: int, *, interactive: bool = True, generates: bool = True) -> TokenSequence:
        sequence = TokenSequence(len(self.sequences), self.cache, "", 0.0, len(self.sequences))
        sequence.tokens.extend(range(tokens))
        sequence.is_interactive = interactive
        sequence.pending_fills.append(tokens)
        if generates:
            sequence.generation = Generation(SamplingParams(ignore_eos=True), self.tokenizer, [], 10_000)
        self.sequences.append(sequence)
        return sequence

    def step(self) -> float:
        plan = self.planner.plan(self.sequences)
        prefill = plan.rows - plan.decoding - plan.drafted_rows
        seconds = (self.decode if plan.decoding else 0.0) + self.row * (prefill + plan.drafted_rows)
        self.rows.append((plan.decoding, prefill))
        self.now += seconds
        self.step_budget.observe(
            decoding=plan.decoding,
            interactive=plan.interactive,
            prefill=prefill,
            long=plan.long,
            waiting=plan.has_waiting_prompts,
            seconds=seconds,
            drafted=plan.drafted_rows,
        )
        for chunk in plan.chunks:
            chunk.sequence.tokens.extend(chunk.draft)
            chunk.sequence.commit(chunk.end)
            chunk.sequence.finish_fills()
            if chunk.samples and chunk.sequence.generation is not None:
                chunk.sequence.tokens.append(1)
                chunk.sequence.generation.push(1)
        return seconds


@pytest.mark.parametrize(("decode", "row"), [(DECODE, ROW), (0.011, 0.00016), (0.06, 0.004)])
def test_interactive_sequences_keep_their_share_while_long_prompts_arrive(
    tokenizer: Tokenizer, decode: float, row: float
) -> None:
    clock = SimulatedMachine(tokenizer, decode=decode, row=row)
    readers = [clock.add(20) for _ in range(8)]
    for _ in range(30):
        clock.step()
    late = [clock.add(2000) for _ in range(4)]
    began, before = clock.now, sum(len(reader.tokens) for reader in readers)
    longest = 0.0
    while any(sequence.computed_tokens < 2000 for sequence in late):
        longest = max(longest, clock.step())
    created = sum(len(reader.tokens) for reader in readers) - before
    alone = (clock.now - began) / decode * 8
    assert created / alone >= 0.6 * 0.95
    assert longest <= 0.11 + decode
    assert clock.now - began < 1.2 * 8000 * row / 0.4, "the prompts get the rest"


def test_short_prompts_need_no_saved_time(tokenizer: Tokenizer) -> None:
    clock = SimulatedMachine(tokenizer)
    clock.add(20)
    for _ in range(30):
        clock.step()
    short = clock.add(60)
    clock.step()
    assert short.generation is not None
    assert short.generation.has_started


def test_interactive_sequence_keeps_its_share_next_to_background_work(tokenizer: Tokenizer) -> None:
    clock = SimulatedMachine(tokenizer)
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
    assert sum(sequence.computed_tokens for sequence in clock.sequences[1:]) > 1000, (
        "the background sequences make progress"
    )


def test_interactive_prompt_does_not_wait_for_full_background_steps(tokenizer: Tokenizer) -> None:
    for interactive, longest in ((False, 0.3), (True, 0.15)):
        clock = SimulatedMachine(tokenizer)
        clock.add(2000, interactive=False)
        awaited = clock.add(40, interactive=interactive)
        awaited.rank = -1.0
        assert 0.5 * longest < clock.step() < longest
        assert awaited.is_decoding


def test_prompt_gets_whole_steps_without_decoding(tokenizer: Tokenizer) -> None:
    clock = SimulatedMachine(tokenizer)
    clock.add(2000)
    steps = [clock.step() for _ in range(3)]
    assert max(steps) > 0.15
    assert max(steps) < 0.5


def test_background_prompts_get_whole_steps_with_decoding(tokenizer: Tokenizer) -> None:
    clock = SimulatedMachine(tokenizer)
    clock.add(20, interactive=False)
    for _ in range(30):
        clock.step()
    clock.rows.clear()
    late = clock.add(2000, interactive=False)
    while not late.is_decoding:
        clock.step()
    assert all(decoding == 1 for decoding, _ in clock.rows)
    assert len(clock.rows) < 2000 * ROW / 0.2 + 4


def test_prefetched_prompts_ride_with_decode_steps(tokenizer: Tokenizer) -> None:
    for interactive, least in ((True, 1), (False, 8)):
        clock = SimulatedMachine(tokenizer)
        clock.add(20, interactive=interactive)
        for _ in range(30):
            clock.step()
        clock.rows.clear()
        prefetch = clock.add(2000, generates=False)
        for _ in range(60):
            clock.step()
        carried = [prefill for _, prefill in clock.rows]
        assert sum(rows > 0 for rows in carried) > 50, "they ride with nearly every step"
        assert carried.count(0) >= 3, "some steps only decode, to measure what decoding takes"
        assert least * 50 < prefetch.computed_tokens < 60 * 2.1 * DECODE / ROW, "no prompt waits long because of them"


def test_delayed_step_changes_the_estimates_little() -> None:
    step_budget = StepBudget(decode_share=0.6, max_step_seconds=0.1)
    step_budget.calibrate(64, 64 * ROW)
    step_budget.calibrate(1, DECODE)
    step_budget.observe(decoding=8, interactive=8, prefill=0, long=0, waiting=False, seconds=60.0)
    step_budget.observe(decoding=0, interactive=0, prefill=100, long=0, waiting=False, seconds=60.0)
    assert DECODE < step_budget.decode_seconds < 1.5 * DECODE
    assert ROW < step_budget.row_seconds < 1.5 * ROW
    for _ in range(30):
        step_budget.observe(decoding=8, interactive=8, prefill=0, long=0, waiting=False, seconds=DECODE)
    assert step_budget.decode_seconds == pytest.approx(DECODE, rel=0.01)


def test_less_urgent_prompts_ride_with_decode_steps(tokenizer: Tokenizer) -> None:
    clock = SimulatedMachine(tokenizer)
    urgent = clock.add(20, interactive=False)
    for _ in range(30):
        clock.step()
    clock.rows.clear()
    late = clock.add(4000, interactive=False)
    late.rank = urgent.rank + 1.0
    seconds = [clock.step() for _ in range(100)]
    assert max(seconds) < 3.8 * DECODE, "decoding is not slowed down much"
    assert late.computed_tokens > 70 * 16, "the prompt does not starve"
    assert [rows for _, rows in clock.rows].count(0) >= 5, "some steps only decode, to measure what decoding takes"
    late.rank = urgent.rank
    assert max(clock.step() for _ in range(2)) > 0.15, "an equally urgent prompt gets whole steps"


def test_background_sequences_pause_if_too_many(tokenizer: Tokenizer) -> None:
    clock = SimulatedMachine(tokenizer)
    crowd = [clock.add(4, interactive=False) for _ in range(100)]
    for index, sequence in enumerate(crowd):
        sequence.rank = float(index)
    for _ in range(20):
        clock.step()
    assert max(decoding for decoding, _ in clock.rows) == 100, "without an interactive sequence all continue"
    reader, total = clock.add(40), clock.step_budget.background_rows(1)
    reader.rank = 50.5
    clock.rows.clear()
    before = [len(sequence.tokens) for sequence in crowd]
    for _ in range(10):
        clock.step()
    assert reader.is_decoding
    assert max(decoding for decoding, _ in clock.rows) <= total + 1 < 100
    went_on = [len(sequence.tokens) > length for sequence, length in zip(crowd, before, strict=True)]
    assert went_on[: total - 1] == [True] * (total - 1), "the most urgent ones continue"
    assert not any(went_on[total + 1 :])
    clock.sequences.remove(reader)
    clock.step()
    assert clock.rows[-1][0] == 100


def test_draft_time_does_not_count_as_decode_time() -> None:
    """Otherwise steps that are long anyway would admit prompts."""
    step_budget = StepBudget(decode_share=0.65, max_step_seconds=0.1)
    step_budget.calibrate(1, 0.010)
    step_budget.calibrate(FEW_ROWS, 0.010 + (FEW_ROWS - 1) * 0.0002)
    step_budget.calibrate(100, 0.100)
    few, further = 6 * 0.0002, 14 * 0.001
    for _ in range(100):
        step_budget.observe(
            decoding=2, interactive=2, prefill=0, long=0, waiting=True, drafted=20, seconds=0.0102 + few + further
        )
    assert abs(step_budget.decode_seconds - 0.0102) < 1e-4
    assert abs(step_budget.stand_alone_seconds - 0.0102) < 1e-4


class AllAcceptedSpeculator:
    """Drafts as many tokens as allowed; all are accepted."""

    def propose(
        self, sequences: Iterable[TokenSequence], rows: int, *, decoding: int, with_prefill: bool
    ) -> dict[int, list[int]]:
        requested = list(sequences)
        each = min(31, rows // max(1, len(requested)))
        return {sequence.id: [1] * each for sequence in requested} if each else {}


def test_drafting_sequences_leave_prompts_their_share(tokenizer: Tokenizer) -> None:
    clock = SimulatedMachine(tokenizer)
    clock.planner._speculator = AllAcceptedSpeculator()  # type: ignore[assignment]
    readers = [clock.add(20) for _ in range(8)]
    for _ in range(60):
        clock.step()
    began, lengths = clock.now, sum(len(reader.tokens) for reader in readers)
    alone = [clock.step() for _ in range(40)]
    speed = (sum(len(reader.tokens) for reader in readers) - lengths) / (clock.now - began)
    assert max(alone) <= 0.1 + clock.row, "alone they draft up to the maximum duration of a step"
    assert speed > 1.5 * 8 / clock.decode, "which pays"
    prompt = clock.add(4000)
    began, lengths = clock.now, sum(len(reader.tokens) for reader in readers)
    steps = []
    while prompt.computed_tokens < 4000:
        steps.append(clock.step())
    with_prefill = (sum(len(reader.tokens) for reader in readers) - lengths) / (clock.now - began)
    assert max(steps) <= 0.1 * 1.2
    assert with_prefill > 0.4 * speed, "the interactive sequences keep their share"
    assert clock.now - began < 2 * 4000 * clock.row / (1 - 0.6), "the prompt gets its share"


def test_rows_that_attend_to_many_keys_cost_more() -> None:
    budget = StepBudget(decode_share=0.65, max_step_seconds=0.1)
    budget.calibrate(64, 0.0064)
    assert budget.cost(1000, 1010) == 10, "unknown"
    budget.calibrate_keys(64, 2000, 0.0192)  # three times as long
    assert budget.cost(0, 0) == 0
    assert budget.cost(2000, 2001) == pytest.approx(3.0, rel=0.001)
    assert budget.cost(0, 512) == pytest.approx(512 * (1 + 256 / 1000))
    budget.calibrate_keys(64, 2000, 0.001)
    assert budget.cost(2000, 2001) == 1, "a faster trial was luck"


@given(st.integers(0, 100_000), st.floats(0, 100_000), st.floats(0, 0.01))
@example(0, 63.0, 1e-17)
@example(0, 18.0, 1e-16)
def test_affordable_rows_cost_at_most_what_is_allowed(start: int, allowed: float, key_rows: float) -> None:
    budget = StepBudget(decode_share=0.65, max_step_seconds=0.1)
    budget.calibrate(64, 0.0064)
    budget.calibrate_keys(64, 1000, 0.0064 * (1 + 1000 * key_rows))
    rows = budget.affordable_rows(allowed, start)
    assert rows <= allowed
    assert budget.cost(start, start + rows) <= allowed + 0.01 or rows <= 16, "some rows in any case"
    assert budget.cost(start, start + rows + 2) > allowed


def test_a_prompt_that_is_alone_gets_whole_steps(tokenizer: Tokenizer) -> None:
    budget = StepBudget(decode_share=0.65, max_step_seconds=0.01)
    assert budget.allow_rows(0, interactive=0).total < 100
    allowance = budget.allow_rows(0, interactive=0, alone=True)
    assert budget.affordable_rows(allowance.total, 5000) > 10_000
