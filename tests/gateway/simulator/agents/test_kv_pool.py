"""gateway/simulator/agents/kv_pool.py: the tree of prompts, pins, eviction from the ends, and random operations."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.simulator.agents.kv_pool import Extent, KvPool, Path, build_paths
from gateway.simulator.agents.sessions import clip
from tests.gateway.simulator.agents.synthetic import chain, request

CHAIN = (0, "")


def oldest(candidates: dict[Extent, None]) -> Extent:
    return min(candidates, key=lambda extent: (extent.released, -extent.start))


def length(path: Path) -> int:
    return sum(extent.length for extent in path)


def run(pool: KvPool, path: Path, now: float) -> int:
    """Compute a prompt. Return its cached tokens."""
    cached = pool.cached(path)
    pool.acquire(path)
    pool.mark_computed(path, length(path))
    pool.release(path, CHAIN, now)
    return cached


def test_prompts_share_what_the_recording_says() -> None:
    session = chain(1000, 1500)
    branch = request(900, source=1, shared=640, after=1)
    session = type(session)(session.id, 0, 0, (*session.requests, branch))
    ((first, second, third),) = build_paths([session])
    assert [length(path) for path in (first, second, third)] == [1000, 1500, 900]
    assert length(tuple(extent for extent in second if extent in first)) == 1000
    assert length(tuple(extent for extent in third if extent in second)) == 640
    assert all(
        extent.start == length(path[:index]) for path in (first, second, third) for index, extent in enumerate(path)
    )


def test_sessions_share_equal_tools_and_system_prompts_only() -> None:
    (first,), (second,), (other,) = build_paths(
        [chain(1000, tools=300), chain(1200, tools=300), chain(1000, tools=301)]
    )
    assert first[0] is second[0]
    assert first[0].length == 300
    assert other[0] is not first[0]


def test_prompts_that_are_shorter_than_tools_and_system_are_allowed() -> None:
    (first,), (second,) = build_paths([chain(1000, tools=300), chain(100, tools=300)])
    assert length(second) == 100
    assert length(first) == 1000
    assert second[0] in first


def test_what_is_cached_is_what_was_computed() -> None:
    ((first, second),) = build_paths([chain(1000, 1500)])
    pool = KvPool(10_000, oldest)
    assert run(pool, first, 1.0) == 0
    assert run(pool, second, 2.0) == 1000
    assert run(pool, second, 3.0) == 1500
    assert pool.used == 1500


def test_eviction_takes_the_end_of_a_prompt_first() -> None:
    ((old,), (new,)) = build_paths([chain(1000), chain(800)])
    pool = KvPool(1500, oldest)
    run(pool, old, 1.0)
    run(pool, new, 2.0)
    assert pool.used == 1500
    assert pool.cached(old) == 700
    assert pool.cached(new) == 800


def test_memory_of_tokens_that_were_not_computed_is_freed_at_once() -> None:
    ((path,),) = build_paths([chain(1000)])
    pool = KvPool(1500, oldest)
    pool.acquire(path)
    pool.mark_computed(path, 300)
    pool.release(path, CHAIN, 1.0)
    assert pool.used == pool.cached(path) == 300


def test_calls_that_hold_too_much_are_an_error() -> None:
    pool = KvPool(100, oldest)
    pool.grow(60)
    with pytest.raises(RuntimeError, match="more memory than the pool has"):
        pool.grow(60)


@given(st.integers(0, 10**6), st.integers(3000, 9000))
def test_random_operations_keep_the_sums(seed: int, capacity: int) -> None:
    chance = random.Random(seed)
    sessions = [
        chain(*sorted(chance.randrange(100, 2000) for _ in range(4)), tools=chance.choice([0, 60, 90]))
        for _ in range(4)
    ]
    paths = [path for session in build_paths(clip(sessions, 10**6).sessions) for path in session]
    every = list(dict.fromkeys(extent for path in paths for extent in path))
    pool = KvPool(capacity, oldest)
    held: list[tuple[Path, int]] = []
    answers = 0
    for step in range(60):
        if held and chance.random() < 0.5:
            path, grown = held.pop(chance.randrange(len(held)))
            pool.mark_computed(path, chance.randrange(length(path) + 1))
            if grown and chance.random() < 0.3 and pool.cached(path) == length(path):
                every.append(pool.adopt(path[-1], grown, CHAIN, float(step)))
            else:
                pool.free(grown)
            answers -= grown
            pool.release(path, CHAIN, float(step))
        else:
            path = chance.choice(paths)
            before = pool.pinned
            more = pool.unpinned(path)
            if more <= pool.available:
                pool.acquire(path)
                assert pool.pinned == before + more
                grown = min(chance.randrange(50), pool.available)
                pool.grow(grown)
                answers += grown
                held.append((path, grown))
        pool.check_integrity(every, answers)
    assert pool.peak <= capacity
