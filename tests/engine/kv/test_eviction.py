"""engine/kv/eviction.py: what a full cache gives up, by how much of prompts is found in it."""

import random

from engine.kv.cache import KVCache
from engine.kv.eviction import EvictionPolicy
from engine.sequence import Context

SIZE = 16


def found(prompts: list[list[int]], blocks: int, *, learns: bool) -> float:
    """The share of tokens that are there when they are read."""
    cache = KVCache(1 + blocks, SIZE, retention=EvictionPolicy(blocks, learns=learns))
    tokens = cached = 0
    for at, prompt in enumerate(prompts):
        context = Context(at, cache, "", 0.0, at)
        context.tokens = prompt
        context.adopt_cached()
        tokens += len(prompt)
        cached += context.computed
        assert context.reserve(len(prompt)) is not None
        context.announce(len(prompt))
        context.commit(len(prompt))
        context.free()
    cache.check_integrity([])
    return cached / tokens


def test_what_is_read_again_and_again_outlives_a_flood_of_what_is_read_once() -> None:
    system, prompts = [1] * 320, []
    for turn in range(40):
        prompts += [[*system, *[1000 + turn * 10 + at] * 32] for at in range(6)]
        prompts += [[5000 + turn * 20 + at] * 160 for at in range(12)]
    lru, learned = (found(prompts, 100, learns=learns) for learns in (False, True))
    best = sum(6 * 320 for _ in range(40)) / sum(map(len, prompts))
    assert lru < 0.9 * best, "the flood sweeps it out"
    assert learned > 0.97 * best


def test_what_was_read_often_and_is_read_no_more_goes_in_the_end() -> None:
    pick = random.Random(3)
    prompts = []
    for season in range(12):
        systems = [[100 * season + at] * 160 for at in range(5)]
        prompts += [[*pick.choice(systems), *[10_000 + len(prompts) + at] * 16] for at in range(80)]
    lru, learned = (found(prompts, 70, learns=learns) for learns in (False, True))
    assert learned > 0.95 * lru


def test_without_anything_learned_the_least_recent_goes() -> None:
    once = [[at] * 64 for at in range(40)]
    for learns in (False, True):
        assert found([*once, *once[-20:]], 80, learns=learns) == 20 * 64 / (60 * 64)
        assert found([*once, *once[:20]], 80, learns=learns) == 0.0


def test_what_was_evicted_is_remembered_for_a_while_only() -> None:
    retention = EvictionPolicy(4)
    cache = KVCache(1 + 4, SIZE, retention=retention)
    for at in range(20):
        context = Context(at, cache, "", 0.0, at)
        context.tokens = [at] * SIZE
        context.adopt_cached()
        context.reserve(SIZE)
        context.announce(SIZE)
        context.commit(SIZE)
        context.free()
    paths = [hash((hash(""), hash((0, (at,) * SIZE)))) for at in range(20)]
    assert [at for at in range(20) if retention.evicted(paths[at])] == list(range(8, 16))
    assert retention.returned(paths[12]) == 1
    assert not retention.evicted(paths[12])
