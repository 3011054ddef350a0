"""Tests of engine/kv/eviction.py, by the hit rate of prompts."""

import random

from engine.kv.cache import KVCache
from engine.kv.eviction import EvictionPolicy
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
