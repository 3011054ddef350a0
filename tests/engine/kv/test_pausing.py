"""engine/kv/pausing.py: who waits at a tool boundary, and for how long."""

import math

from hypothesis import given
from hypothesis import strategies as st

from engine.kv.pausing import (
    MAX_PAUSE_SECONDS,
    PausePlan,
    PendingCall,
    RetainedKv,
    is_mostly_cached,
    is_small,
    max_protected_wait,
)

CAPACITY = 1000
ROW = 0.01


def call(program: str = "new", *, cached: int = 0, waited: float = 0.0, rank: float = 5.0) -> PendingCall:
    return PendingCall(program, prompt=400, cached=cached, needed=400 - cached, waited=waited, rank=rank)


def plan(*retained: RetainedKv) -> PausePlan:
    return PausePlan(retained, capacity=CAPACITY, row_seconds=ROW)


def test_a_call_waits_for_kv_that_is_read_soon_and_for_no_other() -> None:
    soon = RetainedKv("a", 700, wait=max_protected_wait(700, CAPACITY, ROW), rank=1.0)
    late = RetainedKv("a", 700, wait=soon.wait + 0.1, rank=1.0)
    assert plan(soon).must_pause(call(), available=1000)
    assert not plan(late).must_pause(call(), available=1000)
    assert not plan().must_pause(call(), available=400)
    assert plan().must_pause(call(), available=399)


def test_kv_is_kept_for_as_long_as_two_prefills_of_it_and_of_the_pool() -> None:
    # a program whose KV was evicted displaces another one when it returns
    two_prefills = 2 * (700 + CAPACITY) * ROW
    assert plan(RetainedKv("a", 700, wait=two_prefills, rank=1.0)).must_pause(call(), available=1000)
    assert not plan(RetainedKv("a", 700, wait=two_prefills + 0.1, rank=1.0)).must_pause(call(), available=1000)


def test_a_program_that_is_mostly_cached_continues() -> None:
    full = plan(RetainedKv("a", 900, wait=0.0, rank=1.0))
    assert full.must_pause(call(cached=199), available=1000)
    assert not full.must_pause(call(cached=200), available=1000)
    assert is_mostly_cached(1, 1)
    assert not is_mostly_cached(1, 0)


def test_a_call_that_displaces_little_is_small() -> None:
    assert is_small(31, 1000)
    assert not is_small(32, 1000)


def test_a_programs_own_kv_is_no_reason_to_wait() -> None:
    own = plan(RetainedKv("a", 500, 0.0, 5.0), RetainedKv("a", 400, 0.0, 5.0))
    assert not own.must_pause(call("a"), available=1000)
    assert own.must_pause(call("b"), available=1000)


def test_after_the_longest_pause_only_programs_that_go_first_count() -> None:
    both = plan(RetainedKv("first", 300, 0.0, 1.0), RetainedKv("later", 400, 0.0, 9.0))
    assert both.must_pause(call(waited=MAX_PAUSE_SECONDS - 1), available=1000)
    assert not both.must_pause(call(waited=MAX_PAUSE_SECONDS), available=1000)
    assert both.must_pause(call(waited=MAX_PAUSE_SECONDS, rank=10.0), available=1000)


RETAINED = st.builds(
    RetainedKv, st.sampled_from("abc"), st.integers(1, 500), st.floats(0, 60) | st.just(math.inf), st.floats(0, 10)
)


@given(st.lists(RETAINED, max_size=8), st.integers(0, 199), st.floats(0, 10), st.integers(400, 1000))
def test_the_program_of_the_lowest_rank_pauses_at_most_so_long(
    retained: list[RetainedKv], cached: int, rank: float, available: int
) -> None:
    lowest = min((kv.rank for kv in retained), default=0.0)
    pending = call("new", cached=cached, waited=MAX_PAUSE_SECONDS, rank=min(rank, lowest) - 0.001)
    assert not plan(*retained).must_pause(pending, available)


@given(st.lists(RETAINED, max_size=8), RETAINED, st.integers(0, 399), st.floats(0, 1000), st.integers(0, 1000))
def test_more_kv_never_shortens_a_pause(
    retained: list[RetainedKv], more: RetainedKv, cached: int, waited: float, available: int
) -> None:
    pending = call("new", cached=cached, waited=waited)
    if plan(*retained).must_pause(pending, available):
        assert plan(*retained, more).must_pause(pending, available)


def test_a_small_call_never_waits() -> None:
    full = plan(RetainedKv("a", 900, wait=0.0, rank=1.0))
    small = PendingCall("new", prompt=31, cached=0, needed=31, waited=0.0, rank=5.0)
    assert not full.must_pause(small, available=0)
    assert full.must_pause(small._replace(needed=32), available=0)


def test_beside_an_idle_engine_a_wait_is_as_long_as_the_displaced_kv_takes_to_compute() -> None:
    full = plan(RetainedKv("a", 900, wait=0.0, rank=1.0))
    assert full.must_pause(call()._replace(idle=400 * ROW), available=1000)
    assert not full.must_pause(call()._replace(idle=400 * ROW + 0.1), available=1000)
