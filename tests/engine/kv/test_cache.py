"""Tests of engine/kv/cache.py and engine/sequence.py against a model that remembers the content of every slot."""

import gc

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.admission import PromptAdmission
from engine.kv.cache import SCRATCH, KVCache, LastBlock, owner_of
from engine.kv.eviction import CLASSES, EvictionPolicy
from engine.kv.expectations import Evictable
from engine.scheduler import StepScheduler
from engine.sequence import TokenSequence

BLOCKS, SIZE = 12, 4


class CheckedPolicy(EvictionPolicy):
    """Policy that compares each victim with a scan of all candidates."""

    def select_victim(self) -> Evictable | None:
        candidates = {block.block: block for block in self.candidates()}
        due = {number for number, block in candidates.items() if block.due_rank is not None}
        ordinary, expected = {}, {}
        for number in candidates.keys() - due:
            block = candidates[number]
            if block.expectation is not None and block.expectation.is_live:
                expected[number] = block.expectation
            else:
                index = min(CLASSES - 1, (block.read_count - 1).bit_length())
                ordinary[number] = self.clock - block.last_release + self._exposure[index] / self._reuses[index]
        rate = self.ticks_per_second
        victim = super().select_victim()
        waits = {number: expectation.wait or 0.0 for number, expectation in expected.items()}
        if victim is None:
            assert not candidates
        elif victim.block in waits:
            wait = waits[victim.block]
            assert wait >= 0.9 * max(waits.values())
            assert not ordinary or (rate is not None and wait * rate > max(ordinary.values()))
        elif victim.block in ordinary:
            assert ordinary[victim.block] == max(ordinary.values())
            if rate is not None and waits:
                assert 0.9 * max(waits.values()) * rate <= ordinary[victim.block]
        else:
            assert not ordinary
            assert not expected
            assert victim.due_rank == max(candidates[number].due_rank or 0.0 for number in due)
        return victim


class PagedSequences(RuleBasedStateMachine):
    """Sequences that fill, fork, continue, and are preempted, freed and expected, in a pool too small for them.

    The model is a dictionary from slot to the text up to the token whose KV is there: a real KV entry depends on just
    that. Every sequence must find its own text in its slots, whatever was shared or copied.
    """

    def __init__(self) -> None:
        super().__init__()
        self.time = 0.0
        self.cache = KVCache(BLOCKS, SIZE, eviction_policy=CheckedPolicy(BLOCKS - 1, now=lambda: self.time))
        self.last_blocks: list[LastBlock] = []
        self.row_seconds = 1.0
        admission = PromptAdmission(self.cache, lambda: self.row_seconds, lambda: self.time)
        self.scheduler = StepScheduler(self.cache, step_tokens=10, max_batch=4, admission=admission)
        self.sequences: dict[int, TokenSequence] = {}
        self.slots: dict[int, tuple[int, ...]] = {}
        self.next_id = 0
        for token in range(100, 100 + 2 * BLOCKS):  # the policy then knows the rate of its clock
            self.time += 0.5
            sequence = filled_sequence(self.cache, [token] * SIZE)
            compute(sequence)
            sequence.free()

    def _fill(self, sequence: TokenSequence, tokens: list[int]) -> None:
        sequence.tokens.extend(tokens[: self.cache.capacity - len(sequence.tokens)])
        sequence.pending_fills.append(len(sequence.tokens))

    def _new(self, scope: str, rank: float) -> TokenSequence:
        self.next_id += 1
        sequence = TokenSequence(self.next_id, self.cache, scope, rank, self.next_id)
        self.sequences[self.next_id] = sequence
        return sequence

    @rule(
        tokens=st.lists(st.integers(0, 1), min_size=1, max_size=14),
        scope=st.sampled_from("ab"),
        rank=st.floats(0, 3),
        pausable=st.booleans(),
    )
    def begin(self, tokens: list[int], scope: str, rank: float, *, pausable: bool) -> None:
        sequence = self._new(scope, rank)
        sequence.is_admitted = not pausable
        self._fill(sequence, tokens)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data(), tokens=st.lists(st.integers(0, 1), min_size=1, max_size=9))
    def continue_text(self, data: st.DataObject, tokens: list[int]) -> None:
        self._fill(self._any(data), tokens)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data(), tokens=st.lists(st.integers(0, 1), max_size=5))
    def fork(self, data: st.DataObject, tokens: list[int]) -> None:
        parent = self._any(data)
        child = self._new(parent.scope, parent.rank)
        child.fork_from(parent)
        self._fill(child, tokens)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        sequence = self._any(data)
        last_block = sequence.free()
        if last_block is not None:
            self.last_blocks.append(last_block)
        del self.sequences[sequence.id]

    @precondition(lambda self: self.last_blocks)
    @rule(data=st.data(), returns=st.lists(st.sampled_from([0.0, 1.0, 60.0]), max_size=3))
    def retain(self, data: st.DataObject, returns: list[float]) -> None:
        self.cache.expect_reader(data.draw(st.sampled_from(self.last_blocks)), returns)

    @rule(seconds=st.sampled_from([0.5, 30.0]))
    def wait(self, seconds: float) -> None:
        self.time += seconds

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def preempt(self, data: st.DataObject) -> None:
        self._any(data).drop_blocks()

    @rule(fails=st.booleans())
    def step(self, fails: bool) -> None:
        plan = self.scheduler.plan(self.sequences.values())
        assert plan.rows <= 10
        work = any(sequence.has_work for sequence in self.sequences.values())
        assert bool(plan.chunks) == work, "the plan is empty although there is work, or the reverse"
        for source, target in plan.copies:
            for inside in range(SIZE):
                if source * SIZE + inside in self.slots:
                    self.slots[target * SIZE + inside] = self.slots[source * SIZE + inside]
        written = [_slot(chunk.sequence, index) for chunk in plan.chunks for index in range(chunk.start, chunk.end)]
        assert len(set(written)) == len(written), "two rows write to one slot"
        assert all(slot >= (SCRATCH + 1) * SIZE for slot in written)
        if fails:
            for chunk in reversed(plan.chunks):
                chunk.sequence.abort()
                chunk.sequence.free()
                del self.sequences[chunk.sequence.id]
            return
        for chunk in plan.chunks:
            for index in range(chunk.start, chunk.end):
                self.slots[_slot(chunk.sequence, index)] = self._text(chunk.sequence, index)
        for chunk in plan.chunks:
            chunk.sequence.commit(chunk.end)
            chunk.sequence.finish_fills()

    def _any(self, data: st.DataObject) -> TokenSequence:
        return self.sequences[data.draw(st.sampled_from(sorted(self.sequences)))]

    def _text(self, sequence: TokenSequence, index: int) -> tuple[int, ...]:
        return (ord(sequence.scope), *sequence.tokens[: index + 1])

    @invariant()
    def cache_is_consistent(self) -> None:
        self.cache.check_integrity([sequence.blocks for sequence in self.sequences.values()])

    @invariant()
    def each_sequence_finds_its_own_text(self) -> None:
        for sequence in self.sequences.values():
            for index in range(sequence.computed_tokens):
                assert self.slots[_slot(sequence, index)] == self._text(sequence, index)

    def teardown(self) -> None:
        for sequence in self.sequences.values():
            sequence.free()
        self.cache.check_integrity([])
        assert self.cache.available == BLOCKS - 1, "a block was lost"


def _slot(sequence: TokenSequence, position: int) -> int:
    """Return where the KV of a position is, in tokens from the start of the pool."""
    return sequence.blocks[position // SIZE] * SIZE + position % SIZE


TestPaging = PagedSequences.TestCase
TestPaging.settings = settings(max_examples=150, stateful_step_count=40)


def compute(sequence: TokenSequence) -> int:
    """Run a sequence's whole fill. Return how many tokens were computed rather than found."""
    sequence.pending_fills.append(len(sequence.tokens))
    sequence.adopt_cached()
    found = sequence.computed_tokens
    assert sequence.reserve(len(sequence.tokens)) is not None
    sequence.announce(len(sequence.tokens))
    sequence.commit(len(sequence.tokens))
    return len(sequence.tokens) - found


def filled_sequence(cache: KVCache, tokens: list[int], scope: str = "") -> TokenSequence:
    sequence = TokenSequence(1, cache, scope, 0.0, 1)
    sequence.tokens.extend(tokens)
    return sequence


def test_equal_prefixes_share_full_blocks() -> None:
    cache = KVCache(BLOCKS, SIZE)
    assert compute(filled_sequence(cache, list(range(10)))) == 10
    assert compute(filled_sequence(cache, [*range(9), 99])) == 2, "two full blocks of four were cached"


def test_scopes_share_no_blocks() -> None:
    cache = KVCache(BLOCKS, SIZE)
    compute(filled_sequence(cache, list(range(8)), "one"))
    assert compute(filled_sequence(cache, list(range(8)), "two")) == 8


def test_roots_of_unused_scopes_vanish() -> None:
    cache = KVCache(BLOCKS, SIZE)
    for number in range(50):
        sequence = filled_sequence(cache, [number] * 8, f"salt {number}")
        compute(sequence)
        sequence.free()
    del sequence
    gc.collect()
    assert len(cache._roots) <= BLOCKS
    cache.check_integrity([])


def test_prefix_sharing_can_be_disabled() -> None:
    cache = KVCache(BLOCKS, SIZE, shares_prefixes=False)
    compute(filled_sequence(cache, list(range(8))))
    assert compute(filled_sequence(cache, list(range(8)))) == 8


def test_least_recently_used_block_is_evicted_first() -> None:
    cache = KVCache(1 + 2, SIZE)
    old, recent = filled_sequence(cache, [1] * SIZE), filled_sequence(cache, [2] * SIZE)
    for sequence in (old, recent):
        compute(sequence)
        sequence.free()
    compute(filled_sequence(cache, [3] * SIZE))
    assert compute(filled_sequence(cache, [2] * SIZE)) == 0
    assert cache.available == 0


def test_blocks_of_preempted_sequences_are_evicted_last_by_rank() -> None:
    cache = KVCache(1 + 3, SIZE)
    urgent, patient, done = (filled_sequence(cache, [index] * SIZE) for index in range(3))
    patient.rank = 5.0
    for sequence in (urgent, patient, done):
        compute(sequence)
    urgent.drop_blocks()
    patient.drop_blocks()
    done.free()  # released last, but evicted first
    kept = [(1, 2), (1,), ()]
    for new, left in enumerate(kept):
        compute(filled_sequence(cache, [10 + new] * SIZE))
        there = [index for index in range(3) if cache.child(cache.root(""), (index,) * SIZE) is not None]
        assert there == {(1, 2): [0, 1], (1,): [0], (): []}[left]


def test_blocks_of_an_ended_sequence_are_not_retained_for_it() -> None:
    cache = KVCache(1 + 2, SIZE)
    ended, later = filled_sequence(cache, [1] * SIZE), filled_sequence(cache, [2] * SIZE)
    for sequence in (ended, later):
        compute(sequence)
    ended.drop_blocks()
    later.free()
    ended.free()
    compute(filled_sequence(cache, [3] * SIZE))
    assert compute(filled_sequence(cache, [2] * SIZE)) == 0, (
        "the block of the ended sequence, which was used before, is evicted"
    )


def expected_blocks(cache: KVCache) -> set[int]:
    return {node.block for node in cache._nodes.values() if node.expectation is not None and node.expectation.is_live}


def freed_block(sequence: TokenSequence) -> LastBlock:
    last_block = sequence.free()
    assert last_block is not None
    return last_block


def test_expectation_covers_the_blocks_that_no_sequence_holds() -> None:
    cache = KVCache(BLOCKS, SIZE)
    other, sequence = filled_sequence(cache, [1] * 8), filled_sequence(cache, [*[1] * 4, *[2] * 10])
    compute(other)
    compute(sequence)
    own = set(sequence.blocks[1:3])
    last_block = freed_block(sequence)
    cache.expect_reader(last_block, [5.0])
    assert expected_blocks(cache) == own, "another sequence holds the first block"
    shared = set(sequence.blocks[:1]) | set(other.blocks[:1])
    last_of_other = freed_block(other)
    cache.expect_reader(last_block, [5.0])
    assert expected_blocks(cache) == own | shared
    cache.expect_reader(last_of_other, [5.0])
    assert len(expected_blocks(cache)) == 4
    cache.expect_reader(last_of_other, [])
    assert expected_blocks(cache) == own, "the block that both share had the latest expectation"
    cache.expect_reader(last_block, [5.0])
    cache.expect_reader(last_of_other, [])
    assert expected_blocks(cache) == own | shared, "a context ends no expectation of another one"
    cache.check_integrity([])


def test_blocks_that_the_returned_reader_does_not_read_are_ordinary() -> None:
    cache = KVCache(BLOCKS, SIZE)
    turn = filled_sequence(cache, [1] * 16)
    compute(turn)
    cache.expect_reader(freed_block(turn), [5.0])
    blocks = expected_blocks(cache)
    assert len(blocks) == 4
    shares_half = filled_sequence(cache, [*[1] * 8, *[2] * 4])
    compute(shares_half)
    assert len(expected_blocks(cache)) == 2, "it may be another conversation"
    next_turn = filled_sequence(cache, [*[1] * 12, *[3] * 8])
    compute(next_turn)
    assert expected_blocks(cache) == set(), "its reader has returned without reading the fourth block"
    cache.check_integrity([shares_half.blocks, next_turn.blocks])
    shares_half.free()
    own = set(next_turn.blocks)
    cache.expect_reader(freed_block(next_turn), [5.0])
    assert expected_blocks(cache) == own, "the expectation covers the whole conversation although it has other ends"
    cache.check_integrity([])


def test_cached_tokens_are_those_of_the_full_blocks_at_the_beginning() -> None:
    cache = KVCache(BLOCKS, SIZE)
    compute(filled_sequence(cache, list(range(10)), "a"))
    assert cache.cached_tokens("a", list(range(20))) == 8
    assert cache.cached_tokens("a", list(range(7))) == 4
    assert cache.cached_tokens("a", [0, 1, 2, 9]) == 0
    assert cache.cached_tokens("b", list(range(10))) == 0


def test_expected_tokens_are_counted_by_owner() -> None:
    cache = KVCache(BLOCKS, SIZE, eviction_policy=EvictionPolicy(BLOCKS - 1, now=lambda: 0.0))
    for scope, tokens, returns in (("a", [1] * 9, [3.0]), ("a\0salt", [2] * 4, [5.0]), ("b", [1] * 4, [3.0])):
        sequence = filled_sequence(cache, tokens, scope)
        compute(sequence)
        cache.expect_reader(freed_block(sequence), returns)
    compute(filled_sequence(cache, [3] * 8, "a"))
    a, b = owner_of("a"), owner_of("b")
    assert cache.expected_tokens(lambda tokens, wait: True) == {a: 12, b: 4}
    assert cache.expected_tokens(lambda tokens, wait: wait < 8) == {a: 8, b: 4}, "two waits of 3 s or never: 6 s"
    assert cache.expected_tokens(lambda tokens, wait: tokens > 4) == {a: 8}


def test_block_that_is_read_again_is_not_expected_any_more() -> None:
    cache = KVCache(BLOCKS, SIZE)
    sequence = filled_sequence(cache, list(range(12)))
    compute(sequence)
    blocks = list(sequence.blocks)
    last_block = freed_block(sequence)
    cache.expect_reader(last_block, [5.0])
    assert expected_blocks(cache) == set(blocks)
    reader = filled_sequence(cache, [*range(4), *[9] * 4])
    compute(reader)
    assert expected_blocks(cache) == set(blocks[1:])
    again = filled_sequence(cache, list(range(12)))
    compute(again)
    assert expected_blocks(cache) == set()
    again.free()
    cache.expect_reader(last_block, [5.0])
    assert expected_blocks(cache) == set(), "the context was continued before"
    cache.check_integrity([reader.blocks])


def test_expectation_without_valid_durations_ends() -> None:
    cache = KVCache(BLOCKS, SIZE)
    sequence = filled_sequence(cache, list(range(12)))
    compute(sequence)
    last_block = freed_block(sequence)
    for returns in ([], [float("nan"), float("inf"), -1.0]):
        cache.expect_reader(last_block, [5.0])
        assert len(expected_blocks(cache)) == 3
        cache.expect_reader(last_block, returns)
        assert expected_blocks(cache) == set()
        cache.check_integrity([])


def test_context_whose_last_block_was_evicted_is_not_expected() -> None:
    cache = KVCache(1 + 3, SIZE)
    sequence = filled_sequence(cache, [1] * 12)
    compute(sequence)
    last_block = freed_block(sequence)
    new = filled_sequence(cache, [2] * 4)
    compute(new)
    cache.expect_reader(last_block, [5.0])
    assert expected_blocks(cache) == set()
    new.free()
    cache.expect_reader(last_block, [5.0])
    assert expected_blocks(cache) == set(), "the block has other content now"


def test_context_without_a_full_block_leaves_no_record() -> None:
    cache = KVCache(BLOCKS, SIZE)
    short = filled_sequence(cache, [1, 2])
    compute(short)
    assert short.free() is None
    preempted = filled_sequence(cache, [1] * 8)
    compute(preempted)
    preempted.drop_blocks()
    assert preempted.free() is not None, "the tree retains the blocks of a preempted sequence"


def test_cache_miss_reasons() -> None:
    cache = KVCache(1 + 6, SIZE)

    def missed(tokens: list[int], scope: str = "") -> dict[str, int]:
        sequence = filled_sequence(cache, tokens, scope)
        sequence.fill_tokens = len(tokens)
        compute(sequence)
        sequence.free()
        return sequence.take_misses()

    assert missed([1] * 8) == {"never_seen": 8}
    assert missed([1] * 8) == {}
    assert missed([*[1] * 4, *[2] * 4]) == {"diverged": 4}
    assert missed([1] * 10) == {"part_of_a_block": 2}
    assert missed([1] * 8, "another") == {"other_key": 8}
    assert missed([1] * 4 + [3] * 4) == {"diverged": 4}
    assert missed([1] * 4 + [3] * 4, "another") == {"diverged": 4}, "as if no other scope had the block"
    assert missed(list(range(24))) == {"never_seen": 24}, "fills the pool"
    assert missed([1] * 8) == {"evicted": 8}
    cache = KVCache(BLOCKS, SIZE, shares_prefixes=False)
    assert missed([1] * 8) == {"sharing_off": 8}


def test_pool_needs_two_blocks() -> None:
    with pytest.raises(ValueError, match="at least two"):
        KVCache(1, SIZE)
