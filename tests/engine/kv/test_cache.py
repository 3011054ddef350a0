"""engine/kv/cache.py and engine/sequence.py, against a model that remembers what every slot holds."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.kv.cache import SCRATCH, KVCache
from engine.scheduler import StepScheduler
from engine.sequence import Context

BLOCKS, SIZE = 12, 4


class Paging(RuleBasedStateMachine):
    """Contexts that fill, fork, go on, are preempted and freed in a pool too small for them.

    The slow model is a dictionary from slot to the text up to and with the token whose KV stands there: what a
    real KV entry depends on. Every context must find its own text in its slots, whatever was shared or copied.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cache = KVCache(BLOCKS, SIZE)
        self.planner = StepScheduler(self.cache, step_tokens=10, max_batch=4)
        self.contexts: dict[int, Context] = {}
        self.slots: dict[int, tuple[int, ...]] = {}
        self.next_id = 0

    def _fill(self, context: Context, tokens: list[int]) -> None:
        context.tokens.extend(tokens[: self.cache.capacity - len(context.tokens)])
        context.fills.append(len(context.tokens))

    def _new(self, scope: str, rank: float) -> Context:
        self.next_id += 1
        context = Context(self.next_id, self.cache, scope, rank, self.next_id)
        self.contexts[self.next_id] = context
        return context

    @rule(
        tokens=st.lists(st.integers(0, 1), min_size=1, max_size=14), scope=st.sampled_from("ab"), rank=st.floats(0, 3)
    )
    def begin(self, tokens: list[int], scope: str, rank: float) -> None:
        self._fill(self._new(scope, rank), tokens)

    @precondition(lambda self: self.contexts)
    @rule(data=st.data(), tokens=st.lists(st.integers(0, 1), min_size=1, max_size=9))
    def go_on(self, data: st.DataObject, tokens: list[int]) -> None:
        self._fill(self._any(data), tokens)

    @precondition(lambda self: self.contexts)
    @rule(data=st.data(), tokens=st.lists(st.integers(0, 1), max_size=5))
    def fork(self, data: st.DataObject, tokens: list[int]) -> None:
        parent = self._any(data)
        child = self._new(parent.scope, parent.rank)
        child.fork_from(parent)
        self._fill(child, tokens)

    @precondition(lambda self: self.contexts)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        context = self._any(data)
        context.free()
        del self.contexts[context.id]

    @precondition(lambda self: self.contexts)
    @rule(data=st.data())
    def preempt(self, data: st.DataObject) -> None:
        self._any(data).drop_blocks()

    @rule(fails=st.booleans())
    def step(self, fails: bool) -> None:
        plan = self.planner.plan(self.contexts.values())
        assert plan.rows <= 10
        work = any(context.has_work for context in self.contexts.values())
        assert bool(plan.chunks) == work, "work was left lying, or done where there was none"
        for source, target in plan.copies:
            for inside in range(SIZE):
                if source * SIZE + inside in self.slots:
                    self.slots[target * SIZE + inside] = self.slots[source * SIZE + inside]
        written = [_slot(chunk.context, at) for chunk in plan.chunks for at in range(chunk.start, chunk.end)]
        assert len(set(written)) == len(written), "two rows write to one slot"
        assert all(slot >= (SCRATCH + 1) * SIZE for slot in written)
        if fails:
            for chunk in reversed(plan.chunks):
                chunk.context.abort()
                chunk.context.free()
                del self.contexts[chunk.context.id]
            return
        for chunk in plan.chunks:
            for at in range(chunk.start, chunk.end):
                self.slots[_slot(chunk.context, at)] = self._text(chunk.context, at)
        for chunk in plan.chunks:
            chunk.context.commit(chunk.end)
            chunk.context.settle_fills()

    def _any(self, data: st.DataObject) -> Context:
        return self.contexts[data.draw(st.sampled_from(sorted(self.contexts)))]

    def _text(self, context: Context, at: int) -> tuple[int, ...]:
        return (ord(context.scope), *context.tokens[: at + 1])

    @invariant()
    def counts_add_up(self) -> None:
        self.cache.check_integrity([context.blocks for context in self.contexts.values()])

    @invariant()
    def every_context_finds_its_own_text(self) -> None:
        for context in self.contexts.values():
            for at in range(context.computed):
                assert self.slots[_slot(context, at)] == self._text(context, at)

    def teardown(self) -> None:
        for context in self.contexts.values():
            context.free()
        self.cache.check_integrity([])
        assert self.cache.available == BLOCKS - 1, "a block was lost"


def _slot(context: Context, position: int) -> int:
    """Where the KV of a position lies, in tokens from the start of the pool."""
    return context.blocks[position // SIZE] * SIZE + position % SIZE


TestPaging = Paging.TestCase
TestPaging.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def compute(context: Context) -> int:
    """Runs a context's whole fill by itself. Returns how many tokens were computed rather than found."""
    context.fills.append(len(context.tokens))
    context.adopt_cached()
    found = context.computed
    assert context.reserve(len(context.tokens)) is not None
    context.announce(len(context.tokens))
    context.commit(len(context.tokens))
    return len(context.tokens) - found


def context_with(cache: KVCache, tokens: list[int], scope: str = "") -> Context:
    context = Context(1, cache, scope, 0.0, 1)
    context.tokens.extend(tokens)
    return context


def test_equal_prefixes_are_found_in_full_blocks() -> None:
    cache = KVCache(BLOCKS, SIZE)
    assert compute(context_with(cache, list(range(10)))) == 10
    assert compute(context_with(cache, [*range(9), 99])) == 2, "two full blocks of four were there"


def test_scopes_share_nothing() -> None:
    cache = KVCache(BLOCKS, SIZE)
    compute(context_with(cache, list(range(8)), "one"))
    assert compute(context_with(cache, list(range(8)), "two")) == 8


def test_sharing_can_be_switched_off() -> None:
    cache = KVCache(BLOCKS, SIZE, sharing=False)
    compute(context_with(cache, list(range(8))))
    assert compute(context_with(cache, list(range(8)))) == 8


def test_the_block_used_longest_ago_goes_first() -> None:
    cache = KVCache(1 + 2, SIZE)
    old, recent = context_with(cache, [1] * SIZE), context_with(cache, [2] * SIZE)
    for context in (old, recent):
        compute(context)
        context.free()
    compute(context_with(cache, [3] * SIZE))
    assert compute(context_with(cache, [2] * SIZE)) == 0
    assert cache.available == 0


def test_what_somebody_will_come_back_for_goes_last_and_the_most_urgent_at_the_very_end() -> None:
    cache = KVCache(1 + 3, SIZE)
    urgent, patient, done = (context_with(cache, [at] * SIZE) for at in range(3))
    patient.rank = 5.0
    for context in (urgent, patient, done):
        compute(context)
    urgent.drop_blocks()
    patient.drop_blocks()
    done.free()  # the last one, and yet it goes first
    kept = [(1, 2), (1,), ()]
    for new, left in enumerate(kept):
        compute(context_with(cache, [10 + new] * SIZE))
        there = [at for at in range(3) if cache.child(cache.root(""), (at,) * SIZE) is not None]
        assert there == {(1, 2): [0, 1], (1,): [0], (): []}[left]


def test_a_context_that_ended_after_all_is_waited_for_no_more() -> None:
    cache = KVCache(1 + 2, SIZE)
    ended, later = context_with(cache, [1] * SIZE), context_with(cache, [2] * SIZE)
    for context in (ended, later):
        compute(context)
    ended.drop_blocks()
    later.free()
    ended.free()
    compute(context_with(cache, [3] * SIZE))
    assert compute(context_with(cache, [2] * SIZE)) == 0, "the other one, which was used before, has gone"


def test_why_a_prompt_was_not_there() -> None:
    cache = KVCache(1 + 6, SIZE)

    def missed(tokens: list[int], scope: str = "") -> dict[str, int]:
        context = context_with(cache, tokens, scope)
        context.filled = len(tokens)
        compute(context)
        context.free()
        return context.settle_missed()

    assert missed([1] * 8) == {"never_seen": 8}
    assert missed([1] * 8) == {}
    assert missed([*[1] * 4, *[2] * 4]) == {"diverged": 4}
    assert missed([1] * 10) == {"part_of_a_block": 2}
    assert missed([1] * 8, "another") == {"other_key": 8}
    assert missed(list(range(24))) == {"never_seen": 24}, "takes all room"
    assert missed([1] * 8) == {"evicted": 8}
    cache = KVCache(BLOCKS, SIZE, sharing=False)
    assert missed([1] * 8) == {"sharing_off": 8}


def test_a_pool_needs_room() -> None:
    with pytest.raises(ValueError, match="at least two"):
        KVCache(1, SIZE)
