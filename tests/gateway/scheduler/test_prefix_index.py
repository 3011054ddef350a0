"""gateway/scheduler/prefix_index.py: which beginnings exist, and which engines received them."""

from typing import Any

import pytest

from gateway.graph.call import Call, CallSpec
from gateway.graph.limits import SessionLimits
from gateway.graph.prefix_hash import PrefixKey, prefix_keys
from gateway.graph.references import Reference
from gateway.graph.segments import Input, Segment, Text
from gateway.graph.session import Session
from gateway.scheduler import prefix_index
from gateway.scheduler.prefix_index import PrefixIndex
from tests.fakes.engine import FakeEngine
from tests.gateway.graph.test_session import session, spec
from tests.gateway.scheduler.scheduler_harness import ANSWER

PREFIXES = [PrefixKey(10, 1), PrefixKey(20, 2), PrefixKey(30, 3)]
LONGER = [*PREFIXES, PrefixKey(40, 4)]


def engine() -> Any:
    return FakeEngine()


def test_a_beginning_is_covered_for_its_own_session_at_once_and_for_others_once_prefilled() -> None:
    index = PrefixIndex()
    assert index.covered_tokens(PREFIXES, 7) == 0
    index.add(PREFIXES, 7)
    assert index.covered_tokens(PREFIXES, 7) == 30
    assert index.covered_tokens(LONGER, 7) == 30
    assert index.covered_tokens(PREFIXES, 8) == 0
    index.mark_prefilled(PREFIXES[:2])
    assert index.covered_tokens(PREFIXES, 8) == 20


def test_engines_have_the_longest_beginning_that_they_received() -> None:
    index, first, second = PrefixIndex(), engine(), engine()
    index.add(LONGER, 1)
    index.record_placement(PREFIXES, first)
    index.record_placement(PREFIXES[:1], second)
    assert index.tokens_by_engine(LONGER) == {first: 30, second: 10}
    assert index.tokens_by_engine([PrefixKey(5, 99), *PREFIXES]) == {}, "a beginning that no prompt had ends the search"


def test_unknown_beginnings_are_not_recorded() -> None:
    index = PrefixIndex()
    index.record_placement(PREFIXES, engine())
    index.mark_prefilled(PREFIXES)
    assert index.tokens_by_engine(PREFIXES) == {}
    assert index.covered_tokens(PREFIXES, 1) == 0


def test_only_the_latest_engines_of_a_beginning_are_kept() -> None:
    index, engines = PrefixIndex(), [engine() for _ in range(6)]
    index.add(PREFIXES, 1)
    for one in [*engines, engines[3]]:
        index.record_placement(PREFIXES, one)
    kept = index.tokens_by_engine(PREFIXES)
    assert list(kept) == [engines[2], engines[4], engines[5], engines[3]]


def test_the_least_recently_requested_beginnings_are_evicted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_index, "_MAX_KEYS", 3)
    index = PrefixIndex()
    for key in (1, 2, 3):
        index.add([PrefixKey(10, key)], 1)
    index.add([PrefixKey(10, 1)], 1)
    index.add([PrefixKey(10, 4)], 1)
    assert [key for key in range(1, 5) if index.covered_tokens([PrefixKey(10, key)], 1)] == [1, 3, 4]


def test_the_prefix_index_knows_beginnings_within_texts() -> None:
    def call(*segments: Segment) -> Call:
        return graph.add(CallSpec(model="m", segments=[*segments, ANSWER], deferred=True))

    graph = session()
    source = graph.add(spec(output="a"))
    system, value = [*range(300)], Input(Reference("a"), "m")
    first = call(Text([*system, 7]), value, Text([8]))
    same_start = call(Text([*system, 9]))
    same_value = call(Text([*system, 7]), value, Text([9]))
    prefix_index, one, two = PrefixIndex(), FakeEngine(name="one"), FakeEngine(name="two")
    assert prefix_index.covered_tokens(prefix_keys(first), 1) == 0
    prefix_index.add(prefix_keys(first), 1)
    prefix_index.record_placement(prefix_keys(first), one)
    assert prefix_index.covered_tokens(prefix_keys(same_start), 1) == 256, (
        "two chunks of 128, which the first call prefills"
    )
    assert prefix_index.covered_tokens(prefix_keys(same_value), 1) == 301 + 64
    assert prefix_index.covered_tokens(prefix_keys(same_value), 2) == 0, (
        "no engine has prefilled it yet, so another session may have to"
    )
    prefix_index.mark_prefilled(prefix_keys(first))
    assert prefix_index.covered_tokens(prefix_keys(same_value), 2) == 301 + 64
    assert prefix_index.tokens_by_engine(prefix_keys(same_start)) == {one: 256}
    prefix_index.record_placement(prefix_keys(same_start), two)
    assert prefix_index.tokens_by_engine(prefix_keys(same_value)) == {one: 365, two: 256}
    other = Session(id="s2", tenant="other", created=0.0, ttl=1.0, limits=SessionLimits()).add(
        CallSpec(model="m", segments=[Text(system), ANSWER], deferred=True)
    )
    assert prefix_index.covered_tokens(prefix_keys(other), 1) == 0, "tenants share no prefix keys"
    assert source.output.value is None
