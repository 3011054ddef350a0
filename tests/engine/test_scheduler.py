"""engine/scheduler.py; that no plan breaks the paging is tested in test_kv_cache.py"""

from engine.generation import Generation
from engine.kv.cache import KVCache
from engine.protocol import SamplingParams
from engine.scheduler import Plan, StepScheduler
from engine.sequence import Context
from engine.tokenizer import Tokenizer

SIZE = 4


class Stage:
    """A pool, a planner, and contexts with made-up tokens."""

    def __init__(self, tokenizer: Tokenizer, blocks: int = 64, step_tokens: int = 16, max_batch: int = 8) -> None:
        self.cache = KVCache(blocks, SIZE)
        self.planner = StepScheduler(self.cache, step_tokens, max_batch)
        self.contexts: list[Context] = []
        self._tokenizer = tokenizer

    def add(self, tokens: list[int], *, rank: float = 0.0, generates: bool = True) -> Context:
        context = Context(len(self.contexts), self.cache, "", rank, len(self.contexts))
        context.tokens.extend(tokens)
        context.fills.append(len(tokens))
        if generates:
            context.generation = Generation(SamplingParams(), self._tokenizer, [], 100)
        self.contexts.append(context)
        return context

    def step(self) -> Plan:
        plan = self.planner.plan(self.contexts)
        for chunk in plan.chunks:
            if not chunk.stored:
                chunk.context.commit(chunk.end)
            chunk.context.settle_fills()
            if chunk.samples and chunk.context.generation is not None:
                chunk.context.tokens.append(1)
                chunk.context.generation.push(1)
        return plan


def rows(plan: Plan) -> list[tuple[int, int]]:
    return [(chunk.context.id, chunk.end - chunk.start) for chunk in plan.chunks]


def test_decode_goes_first_and_prefill_fills_the_budget(tokenizer: Tokenizer) -> None:
    stage = Stage(tokenizer)
    stage.add([5] * 3)
    stage.step()
    stage.add([*range(100, 140)])
    assert rows(stage.step()) == [(0, 1), (1, 15)]
    assert rows(stage.step()) == [(0, 1), (1, 15)]
    plan = stage.step()
    assert rows(plan) == [(0, 1), (1, 10)]
    assert [chunk.samples for chunk in plan.chunks] == [True, True]


def force(context: Context, count: int) -> None:
    """As if a grammar had left no choice of so many tokens."""
    assert context.generation is not None
    context.tokens += [7] * count
    context.generation.forced = count


def test_tokens_that_a_grammar_forced_are_computed_where_the_context_decodes(tokenizer: Tokenizer) -> None:
    stage = Stage(tokenizer)
    one, other = stage.add([5] * 3), stage.add([6] * 3)
    stage.step()
    stage.add([*range(100, 140)], rank=-1.0)
    force(one, 4)
    plan = stage.step()
    assert rows(plan) == [(0, 5), (1, 1), (2, 10)]
    assert [chunk.samples for chunk in plan.chunks] == [True, True, False]
    assert plan.decoding == 2
    force(one, 9)
    force(other, 9)
    plan = stage.step()
    assert rows(plan) == [(0, 10), (1, 6)], "more than a step takes"
    assert [chunk.samples for chunk in plan.chunks] == [True, False]
    assert rows(stage.step()) == [(0, 1), (1, 4), (2, 11)]


class Asked:
    """Says for whom drafts were asked."""

    def propose(self, contexts: list[Context], rows: int, *, among: int, beside: bool) -> dict[int, list[int]]:
        self.ids = [context.id for context in contexts], among
        return {}


def test_nobodys_steps_are_made_longer_for_what_nobody_watches(tokenizer: Tokenizer) -> None:
    stage, asked = Stage(tokenizer), Asked()
    for _ in range(3):
        stage.add([5] * 3).interactive = False
    stage.step()
    stage.planner._speculation = asked  # type: ignore[assignment]
    stage.step()
    assert asked.ids == ([0, 1, 2], 3)
    stage.contexts[1].interactive = True
    stage.step()
    assert asked.ids == ([1], 3)
    stage.contexts[1].interactive = False
    stage.add([6] * 200, generates=False)
    stage.step()
    assert asked.ids == ([0, 1, 2], 3), "what somebody waits for waits for them"
    stage.add([6] * 3)
    stage.step()
    assert asked.ids == ([], 3), "somebody waits for a prompt"


class Drafting:
    """Drafts so many tokens for everybody."""

    def __init__(self, count: int) -> None:
        self.count = count

    def propose(self, contexts: list[Context], rows: int, *, among: int, beside: bool) -> dict[int, list[int]]:
        found = {}
        for context in contexts:
            if len(context.tokens) - context.computed == 1 and rows >= self.count:
                found[context.id] = [8] * self.count
                rows -= self.count
        return found


def test_drafts_and_forced_tokens_share_a_step(tokenizer: Tokenizer) -> None:
    stage = Stage(tokenizer, max_batch=16)
    one, other = stage.add([5] * 3), stage.add([6] * 3)
    stage.step()
    stage.planner._speculation = Drafting(12)  # type: ignore[assignment]
    force(one, 9)
    plan = stage.planner.plan(stage.contexts)
    assert [(chunk.context.id, len(chunk.drafted)) for chunk in plan.chunks] == [(0, 0), (1, 12)]
    assert plan.rows == 16
    assert other.computed == 3


def test_who_loses_its_blocks_in_a_plan_is_not_drafted_in_it(tokenizer: Tokenizer) -> None:
    stage = Stage(tokenizer, blocks=6)  # one is the scratch block
    stage.add([*range(1, 9)], rank=0.0)
    stage.add([*range(11, 19)], rank=1.0)
    stage.step()
    assert all(context.decoding for context in stage.contexts)
    stage.planner._speculation = Drafting(3)  # type: ignore[assignment]
    held = [stage.cache.allocate()]  # all that is left
    assert held != [None]
    plan = stage.planner.plan(stage.contexts)
    assert plan.preempted == [stage.contexts[1]]
    first, *others = plan.chunks
    assert (first.context.id, first.start) == (0, 8)
    assert not any(chunk.drafted for chunk in others)


def test_lower_rank_is_prefilled_first(tokenizer: Tokenizer) -> None:
    stage = Stage(tokenizer)
    stage.add([*range(100, 120)], rank=2.0)
    stage.add([*range(200, 210)], rank=1.0)
    assert rows(stage.step()) == [(1, 10), (0, 6)]


def test_equal_prompts_are_computed_once_though_they_come_together(tokenizer: Tokenizer) -> None:
    stage = Stage(tokenizer, step_tokens=64)
    for _ in range(5):
        stage.add([*range(100, 120)])
    assert rows(stage.step()) == [(0, 20)], "the others wait for the blocks being made"
    # all full blocks are there; what is left is the last row, for the logits
    assert rows(stage.step()) == [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1)]


def test_a_whole_prompt_in_the_tree_writes_nothing(tokenizer: Tokenizer) -> None:
    stage = Stage(tokenizer)
    stage.add([*range(100, 108)], generates=False)
    stage.step()
    stage.add([*range(100, 108)])
    (chunk,) = stage.step().chunks
    assert (chunk.start, chunk.end, chunk.stored, chunk.samples) == (7, 8, True, True)


def test_the_batch_bound_holds(tokenizer: Tokenizer) -> None:
    stage = Stage(tokenizer, max_batch=3, step_tokens=100)
    for index in range(5):
        stage.add([200 + index])
    assert len(stage.step().chunks) == 3


def test_idle_contexts_lose_their_blocks_first_and_come_back(tokenizer: Tokenizer) -> None:
    stage = Stage(tokenizer, blocks=1 + 6, step_tokens=100)
    idle = stage.add([*range(100, 112)], generates=False)
    stage.step()
    assert not idle.has_work
    stage.add([*range(300, 320)], rank=5.0)
    plan = stage.step()
    assert plan.preempted == [idle], "though the newcomer's rank is worse: it has work, the other has none"
    idle.generation = Generation(SamplingParams(), tokenizer, [], 100)
    stage.contexts.pop().free()
    assert rows(stage.step())[0][0] == idle.id
    assert idle.computed == 12


def test_runnable_contexts_give_way_to_better_ranks_only(tokenizer: Tokenizer) -> None:
    stage = Stage(tokenizer, blocks=1 + 4, step_tokens=100)
    low = stage.add([*range(100, 114)], rank=3.0)
    stage.step()
    stage.add([*range(200, 210)], rank=4.0)
    plan = stage.step()
    assert rows(plan) == [(low.id, 1)]
    assert not plan.preempted
    high = stage.add([*range(300, 310)], rank=1.0)
    served = [stage.step() for _ in range(3)]
    assert any(low in plan.preempted for plan in served)
    assert any(chunk.context is high and chunk.samples for plan in served for chunk in plan.chunks)


def test_an_ended_answer_is_not_worked_on(tokenizer: Tokenizer) -> None:
    stage = Stage(tokenizer)
    context = stage.add([5] * 3)
    stage.step()
    context.generation = None
    assert not stage.step().chunks, "the token sampled last is computed when somebody goes on from it, not before"
    context.drop_blocks()
    assert not stage.step().chunks, "and blocks that were taken away are not filled again for nobody"


def test_under_pressure_the_better_rank_ends_first(tokenizer: Tokenizer) -> None:
    stage = Stage(tokenizer, blocks=1 + 24, step_tokens=32, max_batch=64)
    for index in range(40):
        stage.add([1000 + index * 50 + at for at in range(12)], rank=float(index * 7 % 40))
    ended: list[float] = []
    at_once = 0
    while any(context.has_work for context in stage.contexts):
        at_once = max(at_once, len(stage.step().chunks))
        for context in stage.contexts:
            if context.generation is not None and context.generation.count >= 12:
                context.generation = None
                context.free()
                ended.append(context.rank)
    assert len(ended) == 40
    assert all(abs(place - rank) <= at_once for place, rank in enumerate(ended)), ended


def test_ten_times_more_work_than_memory_ends_without_thrashing(tokenizer: Tokenizer) -> None:
    stage = Stage(tokenizer, blocks=1 + 24, step_tokens=32, max_batch=64)
    answer = 20
    for index in range(40):
        stage.add([1000 + index * 50 + at for at in range(10 + index % 17)])
    needed = sum(len(context.tokens) + answer for context in stage.contexts)
    assert needed > 10 * stage.cache.capacity
    rows = steps = 0
    while any(context.has_work for context in stage.contexts):
        rows += stage.step().rows
        steps += 1
        assert steps < 5000
        for context in stage.contexts:
            if context.generation is not None and context.generation.count >= answer:
                context.generation = None
                context.free()
    assert rows < 1.2 * needed, f"{rows} rows for {needed} tokens"


def test_a_plan_says_who_waits_for_room_and_who_for_memory(tokenizer: Tokenizer) -> None:
    stage = Stage(tokenizer, blocks=9)
    first, second = stage.add([*range(24)]), stage.add([*range(100, 110)], rank=1.0)
    plan = stage.step()
    assert (rows(plan), plan.held, plan.starved) == ([(0, 16)], [second], [])
    third = stage.add([*range(200, 220)], rank=2.0)
    plan = stage.step()
    assert first.begun
    assert third in plan.starved
    assert third not in plan.held
