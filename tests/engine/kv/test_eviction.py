"""Tests of engine/kv/eviction.py, by the hit rate of prompts, and by the blocks that stay."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from engine.kv.cache import KVCache, LastBlock
from engine.kv.eviction import EvictionPolicy
from engine.kv.expectations import MAX_EXPECTATIONS
from engine.sequence import TokenSequence

SIZE = 16


def hit_rate(prompts: list[list[int]], blocks: int, *, learns: bool) -> float:
    """Return the share of tokens that are cached when they are read."""
    cache = KVCache(1 + blocks, SIZE, eviction_policy=EvictionPolicy(blocks, learns=learns))
    tokens = cached = 0
    for index, prompt in enumerate(prompts):
        context = TokenSequence(index, cache, "", 0.0, index)
        context.tokens = prompt
        context.adopt_cached()
        tokens += len(prompt)
        cached += context.computed_tokens
        assert context.reserve(len(prompt)) is not None
        context.announce(len(prompt))
        context.commit(len(prompt))
        context.free()
    cache.check_integrity([])
    return cached / tokens


def test_frequently_read_blocks_survive_a_scan() -> None:
    system, prompts = [1] * 320, []
    for turn in range(40):
        prompts += [[*system, *[1000 + turn * 10 + index] * 32] for index in range(6)]
        prompts += [[5000 + turn * 20 + index] * 160 for index in range(12)]
    lru, learned = (hit_rate(prompts, 100, learns=learns) for learns in (False, True))
    best = sum(6 * 320 for _ in range(40)) / sum(map(len, prompts))
    assert lru < 0.9 * best, "the scan evicts it"
    assert learned > 0.97 * best


def test_blocks_no_longer_read_are_evicted_in_the_end() -> None:
    pick = random.Random(3)
    prompts = []
    for season in range(12):
        systems = [[100 * season + index] * 160 for index in range(5)]
        prompts += [[*pick.choice(systems), *[10_000 + len(prompts) + index] * 16] for index in range(80)]
    lru, learned = (hit_rate(prompts, 70, learns=learns) for learns in (False, True))
    assert learned > 0.95 * lru


def test_policy_without_observations_is_least_recently_used() -> None:
    once = [[index] * 64 for index in range(40)]
    for learns in (False, True):
        assert hit_rate([*once, *once[-20:]], 80, learns=learns) == 20 * 64 / (60 * 64)
        assert hit_rate([*once, *once[:20]], 80, learns=learns) == 0.0


def test_evicted_blocks_are_remembered_for_a_while() -> None:
    eviction_policy = EvictionPolicy(4)
    cache = KVCache(1 + 4, SIZE, eviction_policy=eviction_policy)
    for index in range(20):
        context = TokenSequence(index, cache, "", 0.0, index)
        context.tokens = [index] * SIZE
        context.adopt_cached()
        context.reserve(SIZE)
        context.announce(SIZE)
        context.commit(SIZE)
        context.free()
    paths = [hash((hash(""), hash((0, (index,) * SIZE)))) for index in range(20)]
    assert [index for index in range(20) if eviction_policy.was_evicted(paths[index])] == list(range(8, 16))
    assert eviction_policy.record_recompute(paths[12]) == 1
    assert not eviction_policy.was_evicted(paths[12])


@dataclass
class Pool:
    """A pool on a clock that the test sets. Each text is one token, repeated."""

    blocks: int
    learns: bool = True
    seconds: float = 0.0
    cache: KVCache = field(init=False)

    def __post_init__(self) -> None:
        self.policy = EvictionPolicy(self.blocks, learns=self.learns, now=lambda: self.seconds)
        self.cache = KVCache(1 + self.blocks, SIZE, eviction_policy=self.policy)

    def start(self, token: int, blocks: int = 1) -> TokenSequence:
        sequence = TokenSequence(token, self.cache, "", 0.0, token)
        sequence.tokens = [token] * (blocks * SIZE)
        sequence.adopt_cached()
        assert sequence.reserve(len(sequence.tokens)) is not None
        sequence.announce(len(sequence.tokens))
        sequence.commit(len(sequence.tokens))
        return sequence

    def read(self, token: int, blocks: int = 1) -> LastBlock:
        last_block = self.start(token, blocks).free()
        assert last_block is not None
        self.cache.check_integrity([])
        return last_block

    def kept(self, tokens: Sequence[int]) -> dict[int, int]:
        """Return the number of cached blocks of each text that has some."""
        counts = {}
        for token in tokens:
            node, count = self.cache.child(self.cache.root(""), (token,) * SIZE), 0
            while node is not None:
                count += 1
                node = self.cache.child(node, (token,) * SIZE)
            if count:
                counts[token] = count
        return counts

    def turn(self, seconds: float) -> None:
        """Read other texts until the pool has turned twice, in a time that the clock shows."""
        for number in range(2 * self.blocks):
            self.seconds += seconds / (2 * self.blocks)
            self.read(1000 + number)


def test_expected_blocks_stay_before_the_rate_is_known() -> None:
    pool = Pool(6)
    expected = pool.read(1, 2)
    pool.cache.expect_reader(expected, [1e6])
    for token in (2, 3, 4, 5):
        pool.read(token)
    assert pool.policy.ticks_per_second is None
    assert pool.read(6) is not None
    assert pool.kept(range(1, 7)) == {1: 2, 3: 1, 4: 1, 5: 1, 6: 1}


def test_expected_blocks_stay_while_their_reader_is_expected_soon_and_go_first_after_that() -> None:
    pool = Pool(10)
    pool.turn(20.0)
    assert pool.policy.ticks_per_second == pytest.approx(1.0, rel=0.2)
    pool.cache.expect_reader(pool.read(1, 4), [4.0, 5.0, 6.0])
    for token in range(2, 14):
        pool.seconds += 0.4
        pool.read(token)
    assert pool.kept(range(1, 14)) == {1: 4, **dict.fromkeys(range(8, 14), 1)}, "others went although they are newer"
    pool.seconds += 600.0
    pool.turn(0.001)
    assert pool.kept([1]) == {}
    pool.cache.expect_reader(pool.read(1, 4), [4.0, 5.0, 6.0])
    pool.turn(20.0)
    pool.turn(20.0)
    assert pool.kept([1]) == {}, "the reader is late by so much that it is not awaited"


def test_blocks_of_the_later_reader_go_first_and_whole() -> None:
    pool = Pool(12)
    pool.turn(1.0)
    last_blocks = [pool.read(token, 3) for token in (1, 2, 3, 4)]
    for last_block, seconds in zip(last_blocks, (30.0, 900.0, 60.0, 300.0), strict=True):
        pool.cache.expect_reader(last_block, [seconds] * 8)
    held, kept = [], []
    for token in range(10, 22):
        held.append(pool.start(token))  # it holds its block, so that only expected ones can go
        kept.append(pool.kept((1, 2, 3, 4)))
        pool.cache.check_integrity([sequence.blocks for sequence in held])
    assert kept[:6] == [
        {1: 3, 2: 2, 3: 3, 4: 3},
        {1: 3, 2: 1, 3: 3, 4: 3},
        {1: 3, 3: 3, 4: 3},
        {1: 3, 3: 3, 4: 2},
        {1: 3, 3: 3, 4: 1},
        {1: 3, 3: 3},
    ]
    assert kept[8:] == [{1: 3}, {1: 2}, {1: 1}, {}]


def test_groups_that_are_alike_go_one_after_another_while_time_passes() -> None:
    pool = Pool(12)
    pool.turn(1.0)
    for token in (1, 2, 3):
        pool.cache.expect_reader(pool.read(token, 4), [100.0] * 8)
    held, parts = [], []
    for token in range(10, 22):
        pool.seconds += 0.3
        held.append(pool.start(token))
        parts.append(sum(count < 4 for count in pool.kept((1, 2, 3)).values()))
    assert max(parts) == 1, "one group goes whole before the next one loses a part"


def test_preempted_sequences_precede_expected_readers() -> None:
    pool = Pool(4)
    preempted, freed = pool.start(1, 2), pool.start(2, 2)
    last_block = freed.free()
    assert last_block is not None
    pool.cache.expect_reader(last_block, [0.001])
    preempted.drop_blocks()
    held = [pool.start(3), pool.start(4)]
    assert pool.kept((1, 2)) == {1: 2}
    pool.cache.check_integrity([sequence.blocks for sequence in held])


def test_expectations_are_ignored_by_least_recently_used() -> None:
    pool = Pool(6, learns=False)
    pool.cache.expect_reader(pool.read(1, 2), [1.0])
    for token in range(2, 7):
        pool.read(token)
    assert pool.kept(range(1, 7)) == {1: 1, **dict.fromkeys(range(2, 7), 1)}
    pool.read(7)
    assert pool.kept(range(1, 8)) == dict.fromkeys(range(2, 8), 1)


def test_oldest_expectations_become_ordinary() -> None:
    count = MAX_EXPECTATIONS + 10
    pool = Pool(count)
    for token in range(count):
        pool.cache.expect_reader(pool.read(token), [5.0])
    pool.cache.check_integrity([])
    for token in range(count, count + 10):
        pool.read(token)
    assert pool.kept(range(count)) == dict.fromkeys(range(10, count), 1), "the ten oldest were ordinary"


def test_repeated_expectations_leave_no_entries() -> None:
    pool = Pool(8)
    last_block = pool.read(1, 2)
    for _ in range(1000):
        pool.cache.expect_reader(last_block, [5.0])
        pool.cache.expect_reader(last_block, [])
    assert len(pool.policy) <= 4 * 8 + 1
    sequence = pool.start(2)
    sequence.drop_blocks()
    assert sequence._return_node is not None
    other = pool.cache.last_block(sequence._return_node)
    for _ in range(1000):
        pool.cache.expect_reader(other, [5.0])
        pool.cache.expect_reader(other, [])
    assert len(pool.policy) <= 4 * 8 + 1
    pool.cache.check_integrity([])


def test_idle_time_does_not_make_a_rate() -> None:
    pool = Pool(8)
    assert pool.policy.ticks_per_second is None
    for token in range(8):
        pool.read(token)
    assert pool.policy.ticks_per_second is None, "the clock of the test stood still"
    pool.seconds = 4.0
    for token in range(8, 24):
        pool.seconds += 0.5
        pool.read(token)
    assert pool.policy.ticks_per_second == pytest.approx(2.0)
    pool.seconds += 100.0
    rate = pool.policy.ticks_per_second
    assert rate is not None
    assert rate < 0.1
