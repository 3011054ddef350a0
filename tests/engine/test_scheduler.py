"""Tests of engine/scheduler.py. tests/engine/kv/test_cache.py checks that plans keep the cache consistent."""

from engine.generation import Generation
from engine.kv.cache import KVCache
from engine.sampling_params import SamplingParams
from engine.scheduler import Plan, StepScheduler
from engine.sequence import TokenSequence
from engine.tokenizer import Tokenizer

SIZE = 4


class SchedulerHarness:
    """A pool, a scheduler, and sequences with invented tokens."""

    def __init__(self, tokenizer: Tokenizer, blocks: int = 64, step_tokens: int = 16, max_batch: int = 8) -> None:
        self.cache = KVCache(blocks, SIZE)
        self.planner = StepScheduler(self.cache, step_tokens, max_batch)
        self.sequences: list[TokenSequence] = []
        self._tokenizer = tokenizer

    def add(self, tokens: list[int], *, rank: float = 0.0, generates: bool = True) -> TokenSequence:
        sequence = TokenSequence(len(self.sequences), self.cache, "", rank, len(self.sequences))
        sequence.tokens.extend(tokens)
        sequence.pending_fills.append(len(tokens))
        if generates:
            sequence.generation = Generation(SamplingParams(), self._tokenizer, [], 100)
        self.sequences.append(sequence)
        return sequence

    def step(self) -> Plan:
        plan = self.planner.plan(self.sequences)
        for chunk in plan.chunks:
            if not chunk.is_stored:
                chunk.sequence.commit(chunk.end)
            chunk.sequence.finish_fills()
            if chunk.samples and chunk.sequence.generation is not None:
                chunk.sequence.tokens.append(1)
                chunk.sequence.generation.push(1)
        return plan


def rows(plan: Plan) -> list[tuple[int, int]]:
    return [(chunk.sequence.id, chunk.end - chunk.start) for chunk in plan.chunks]


def test_decode_comes_first_and_prefill_fills_the_budget(tokenizer: Tokenizer) -> None:
    stage = SchedulerHarness(tokenizer)
    stage.add([5] * 3)
    stage.step()
    stage.add([*range(100, 140)])
    assert rows(stage.step()) == [(0, 1), (1, 15)]
    assert rows(stage.step()) == [(0, 1), (1, 15)]
    plan = stage.step()
    assert rows(plan) == [(0, 1), (1, 10)]
    assert [chunk.samples for chunk in plan.chunks] == [True, True]


def test_without_an_admission_no_prompt_waits(tokenizer: Tokenizer) -> None:
    stage = SchedulerHarness(tokenizer)
    stage.add([5] * 3).is_admitted = False
    assert rows(stage.step()) == [(0, 3)]


def force_tokens(sequence: TokenSequence, count: int) -> None:
    """Append tokens as if a grammar had forced them."""
    assert sequence.generation is not None
    sequence.tokens += [7] * count
    sequence.generation.forced_count = count


def test_forced_tokens_are_computed_with_the_decode_row(tokenizer: Tokenizer) -> None:
    stage = SchedulerHarness(tokenizer)
    one, other = stage.add([5] * 3), stage.add([6] * 3)
    stage.step()
    stage.add([*range(100, 140)], rank=-1.0)
    force_tokens(one, 4)
    plan = stage.step()
    assert rows(plan) == [(0, 5), (1, 1), (2, 10)]
    assert [chunk.samples for chunk in plan.chunks] == [True, True, False]
    assert plan.decoding == 2
    force_tokens(one, 9)
    force_tokens(other, 9)
    plan = stage.step()
    assert rows(plan) == [(0, 10), (1, 6)], "more than a step holds"
    assert [chunk.samples for chunk in plan.chunks] == [True, False]
    assert rows(stage.step()) == [(0, 1), (1, 4), (2, 11)]


class RecordingSpeculator:
    """Records for which sequences drafts are requested."""

    def propose(
        self, sequences: list[TokenSequence], rows: int, *, decoding: int, with_prefill: bool
    ) -> dict[int, list[int]]:
        self.ids = [sequence.id for sequence in sequences], decoding
        return {}


def test_background_drafts_do_not_lengthen_interactive_steps(tokenizer: Tokenizer) -> None:
    stage, requested = SchedulerHarness(tokenizer), RecordingSpeculator()
    for _ in range(3):
        stage.add([5] * 3).is_interactive = False
    stage.step()
    stage.planner._speculator = requested  # type: ignore[assignment]
    stage.step()
    assert requested.ids == ([0, 1, 2], 3)
    stage.sequences[1].is_interactive = True
    stage.step()
    assert requested.ids == ([1], 3)
    stage.sequences[1].is_interactive = False
    stage.add([6] * 200, generates=False)
    stage.step()
    assert requested.ids == ([0, 1, 2], 3), "no client waits for the prompt yet, so drafts may delay it"
    stage.add([6] * 3)
    stage.step()
    assert requested.ids == ([], 3), "a client waits for a prompt"


class FixedSpeculator:
    """Drafts a fixed number of tokens for every sequence."""

    def __init__(self, count: int) -> None:
        self.count = count

    def propose(
        self, sequences: list[TokenSequence], rows: int, *, decoding: int, with_prefill: bool
    ) -> dict[int, list[int]]:
        found = {}
        for sequence in sequences:
            if len(sequence.tokens) - sequence.computed_tokens == 1 and rows >= self.count:
                found[sequence.id] = [8] * self.count
                rows -= self.count
        return found


def test_drafts_and_forced_tokens_share_the_step(tokenizer: Tokenizer) -> None:
    stage = SchedulerHarness(tokenizer, max_batch=16)
    one, other = stage.add([5] * 3), stage.add([6] * 3)
    stage.step()
    stage.planner._speculator = FixedSpeculator(12)  # type: ignore[assignment]
    force_tokens(one, 9)
    plan = stage.planner.plan(stage.sequences)
    assert [(chunk.sequence.id, len(chunk.draft)) for chunk in plan.chunks] == [(0, 0), (1, 12)]
    assert plan.rows == 16
    assert other.computed_tokens == 3


def test_sequence_preempted_in_a_plan_gets_no_draft(tokenizer: Tokenizer) -> None:
    stage = SchedulerHarness(tokenizer, blocks=6)  # one of them is the scratch block
    stage.add([*range(1, 9)], rank=0.0)
    stage.add([*range(11, 19)], rank=1.0)
    stage.step()
    assert all(sequence.is_decoding for sequence in stage.sequences)
    stage.planner._speculator = FixedSpeculator(3)  # type: ignore[assignment]
    held = [stage.cache.allocate()]  # all remaining blocks
    assert held != [None]
    plan = stage.planner.plan(stage.sequences)
    assert plan.preempted == [stage.sequences[1]]
    first, *others = plan.chunks
    assert (first.sequence.id, first.start) == (0, 8)
    assert not any(chunk.draft for chunk in others)


def test_lower_rank_is_prefilled_first(tokenizer: Tokenizer) -> None:
    stage = SchedulerHarness(tokenizer)
    stage.add([*range(100, 120)], rank=2.0)
    stage.add([*range(200, 210)], rank=1.0)
    assert rows(stage.step()) == [(1, 10), (0, 6)]


def test_equal_prompts_of_one_step_are_computed_once(tokenizer: Tokenizer) -> None:
    stage = SchedulerHarness(tokenizer, step_tokens=64)
    for _ in range(5):
        stage.add([*range(100, 120)])
    assert rows(stage.step()) == [(0, 20)], "the others wait for the blocks being computed"
    # all full blocks are cached; only the last row remains, for the logits
    assert rows(stage.step()) == [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1)]


def test_fully_cached_prompt_writes_no_kv(tokenizer: Tokenizer) -> None:
    stage = SchedulerHarness(tokenizer)
    stage.add([*range(100, 108)], generates=False)
    stage.step()
    stage.add([*range(100, 108)])
    (chunk,) = stage.step().chunks
    assert (chunk.start, chunk.end, chunk.is_stored, chunk.samples) == (7, 8, True, True)


def test_max_batch_is_respected(tokenizer: Tokenizer) -> None:
    stage = SchedulerHarness(tokenizer, max_batch=3, step_tokens=100)
    for index in range(5):
        stage.add([200 + index])
    assert len(stage.step().chunks) == 3


def test_idle_sequences_are_preempted_first_and_resume(tokenizer: Tokenizer) -> None:
    stage = SchedulerHarness(tokenizer, blocks=1 + 6, step_tokens=100)
    idle = stage.add([*range(100, 112)], generates=False)
    stage.step()
    assert not idle.has_work
    stage.add([*range(300, 320)], rank=5.0)
    plan = stage.step()
    assert plan.preempted == [idle], "although its rank is worse: it has work, the other sequence has none"
    idle.generation = Generation(SamplingParams(), tokenizer, [], 100)
    stage.sequences.pop().free()
    assert rows(stage.step())[0][0] == idle.id
    assert idle.computed_tokens == 12


def test_runnable_sequences_are_preempted_only_by_better_ranks(tokenizer: Tokenizer) -> None:
    stage = SchedulerHarness(tokenizer, blocks=1 + 4, step_tokens=100)
    low = stage.add([*range(100, 114)], rank=3.0)
    stage.step()
    stage.add([*range(200, 210)], rank=4.0)
    plan = stage.step()
    assert rows(plan) == [(low.id, 1)]
    assert not plan.preempted
    high = stage.add([*range(300, 310)], rank=1.0)
    served = [stage.step() for _ in range(3)]
    assert any(low in plan.preempted for plan in served)
    assert any(chunk.sequence is high and chunk.samples for plan in served for chunk in plan.chunks)


def test_ended_generation_gets_no_rows(tokenizer: Tokenizer) -> None:
    stage = SchedulerHarness(tokenizer)
    sequence = stage.add([5] * 3)
    stage.step()
    sequence.generation = None
    assert not stage.step().chunks, "the token sampled last is computed with the next fill or generate, not before"
    sequence.drop_blocks()
    assert not stage.step().chunks, "lost blocks are not recomputed without work"


def test_better_rank_ends_first_under_memory_pressure(tokenizer: Tokenizer) -> None:
    stage = SchedulerHarness(tokenizer, blocks=1 + 24, step_tokens=32, max_batch=64)
    for index in range(40):
        stage.add([1000 + index * 50 + position for position in range(12)], rank=float(index * 7 % 40))
    ended: list[float] = []
    at_once = 0
    while any(sequence.has_work for sequence in stage.sequences):
        at_once = max(at_once, len(stage.step().chunks))
        for sequence in stage.sequences:
            if sequence.generation is not None and sequence.generation.count >= 12:
                sequence.generation = None
                sequence.free()
                ended.append(sequence.rank)
    assert len(ended) == 40
    assert all(abs(place - rank) <= at_once for place, rank in enumerate(ended)), ended


def test_ten_times_more_work_than_memory_does_not_thrash(tokenizer: Tokenizer) -> None:
    stage = SchedulerHarness(tokenizer, blocks=1 + 24, step_tokens=32, max_batch=64)
    answer = 20
    for index in range(40):
        stage.add([1000 + index * 50 + position for position in range(10 + index % 17)])
    needed = sum(len(sequence.tokens) + answer for sequence in stage.sequences)
    assert needed > 10 * stage.cache.capacity
    rows = steps = 0
    while any(sequence.has_work for sequence in stage.sequences):
        rows += stage.step().rows
        steps += 1
        assert steps < 5000
        for sequence in stage.sequences:
            if sequence.generation is not None and sequence.generation.count >= answer:
                sequence.generation = None
                sequence.free()
    assert rows < 1.2 * needed, f"{rows} rows for {needed} tokens"


def test_plan_lists_sequences_without_budget_or_memory(tokenizer: Tokenizer) -> None:
    stage = SchedulerHarness(tokenizer, blocks=9)
    first, second = stage.add([*range(24)]), stage.add([*range(100, 110)], rank=1.0)
    plan = stage.step()
    assert (rows(plan), plan.over_budget, plan.out_of_memory) == ([(0, 16)], [second], [])
    third = stage.add([*range(200, 220)], rank=2.0)
    plan = stage.step()
    assert first.has_own_blocks
    assert third in plan.out_of_memory
    assert third not in plan.over_budget
