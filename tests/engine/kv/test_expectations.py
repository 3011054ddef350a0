"""Tests of engine/kv/expectations.py against a model that scans all groups."""

import math
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.kv.expectations import MAX_RETURNS, Expectation, Expectations, valid_returns
from engine.kv.forecast import expected_wait

LIMIT = 5


@dataclass(eq=False)
class Block:
    """A block without a tree."""

    block: int
    last_release: int = 0
    read_count: int = 1
    path: int = 0
    due_rank: float | None = None
    expectation: Expectation | None = None
    is_evictable: bool = False
    owner: int = 0


@dataclass(eq=False)
class Group:
    """Model of an expectation: its blocks, the leaf last, how many were read, and the cached forecast with the end of its
    validity."""

    blocks: list[Block]
    released: float
    returns: list[float]
    wait: float = 0.0
    valid_until: float = -math.inf
    read_count: int = 0

    def refresh(self, now: float) -> None:
        if now >= self.valid_until:
            age = now - self.released
            self.wait, self.valid_until = expected_wait(self.returns, age), now + max(0.5, age / 8)


def _is_live(group: Group) -> bool:
    expectation = group.blocks[-1].expectation
    return expectation is not None and expectation.is_live


class ExpectedGroups(RuleBasedStateMachine):
    """Groups that are added, replaced, read, evicted, and due for a while, with at most five expectations."""

    def __init__(self) -> None:
        super().__init__()
        self.time = 0.0
        self.expectations = Expectations(lambda: self.time, limit=LIMIT)
        self.groups: list[Group] = []
        self.ordinary: list[Block] = []
        self.last: Group | None = None
        self.block_count = 0

    @rule(seconds=st.sampled_from([0.0, 0.3, 1.0, 20.0, 500.0]))
    def wait(self, seconds: float) -> None:
        self.time += seconds

    @rule(
        size=st.integers(1, 4),
        ago=st.sampled_from([0.0, 3.0]),
        returns=st.lists(st.floats(0, 100), min_size=1, max_size=5).map(sorted),
    )
    def add(self, size: int, ago: float, returns: list[float]) -> None:
        blocks = [Block(self.block_count + index, owner=size % 2) for index in range(size)]
        self.block_count += size
        self._expect(blocks, self.time - ago, returns)

    @precondition(lambda self: self.groups)
    @rule(data=st.data(), returns=st.lists(st.floats(0, 100), min_size=1, max_size=5).map(sorted))
    def replace(self, data: st.DataObject, returns: list[float]) -> None:
        group = self._any(data)
        self.groups.remove(group)
        self._expect(group.blocks, self.time, returns)

    def _expect(self, blocks: list[Block], released: float, returns: list[float]) -> None:
        group = Group(blocks, released, returns)
        blocks[-1].is_evictable = True
        ordinary = self.expectations.add(blocks[::-1], released, returns)
        self.expectations.offer(blocks[-1])
        group.refresh(self.time)
        self.groups.append(group)
        if len(self.groups) > LIMIT:
            counts = Counter(group.blocks[0].owner for group in self.groups)
            (oldest,) = (group for group in self.groups if not _is_live(group))
            owner = oldest.blocks[0].owner
            assert counts[owner] == max(counts.values())
            assert oldest is next(group for group in self.groups if group.blocks[0].owner == owner)
            self.groups.remove(oldest)
            self.ordinary += oldest.blocks
            assert ordinary is None or ordinary is oldest.blocks[-1]
            assert ordinary is not None or oldest.blocks[-1].due_rank is not None
        else:
            assert ordinary is None

    @precondition(lambda self: self.groups)
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        """Read the first blocks of a group."""
        group = self._any(data)
        count = data.draw(st.integers(1, len(group.blocks)))
        for _ in range(count):
            if not group.blocks:
                break
            block = group.blocks.pop(0)
            block.is_evictable = False
            ordinary = self.expectations.read(block)
            group.read_count += 1
            if group.read_count < 3 * len(group.blocks):
                assert ordinary is None
                continue
            self.groups.remove(group)
            if group.blocks:
                assert ordinary is group.blocks[-1], "the reader has returned, and the rest is ordinary"
                self.ordinary += group.blocks
            else:
                assert ordinary is None
            break

    @precondition(lambda self: self.groups)
    @rule(data=st.data())
    def become_due(self, data: st.DataObject) -> None:
        self._any(data).blocks[-1].due_rank = 1.0

    @precondition(lambda self: self.groups)
    @rule(data=st.data())
    def become_idle(self, data: st.DataObject) -> None:
        group = self._any(data)
        group.blocks[-1].due_rank = None
        self.expectations.offer(group.blocks[-1])

    @rule(longest=st.sampled_from([1.0, 50.0, math.inf]))
    def count(self, longest: float) -> None:
        counted: dict[int, int] = {}
        for group in self.groups:
            group.refresh(self.time)
            if group.wait <= longest:
                owner = group.blocks[0].owner
                counted[owner] = counted.get(owner, 0) + len(group.blocks)
        assert self.expectations.block_counts(lambda blocks, wait: wait <= longest) == counted

    @rule()
    def evict(self) -> None:
        for group in self.groups:
            group.refresh(self.time)
        candidates = [group for group in self.groups if group.blocks[-1].due_rank is None]
        selected = self.expectations.select()
        if not candidates:
            assert selected is None
            return
        assert selected is not None
        (group,) = (group for group in candidates if group.blocks[-1] is selected.leaf)
        assert selected.wait == group.wait, "the forecast is older than its validity"
        longest = max(candidate.wait for candidate in candidates)
        assert group.wait >= 0.9 * longest
        if self.last in candidates and self.last.wait >= 0.9 * longest:
            assert group is self.last, "a group goes whole before the next one loses a part"
        self.last = group
        block = group.blocks.pop()
        self.expectations.discard(block)
        if group.blocks:
            group.blocks[-1].is_evictable = True
            self.expectations.offer(group.blocks[-1])
        else:
            self.groups.remove(group)

    def _any(self, data: st.DataObject) -> Group:
        return self.groups[data.draw(st.integers(0, len(self.groups) - 1))]

    @invariant()
    def expectations_equal_the_model(self) -> None:
        assert len(self.expectations) == len(self.groups) <= LIMIT
        self.expectations.check_integrity([*self.ordinary, *(block for group in self.groups for block in group.blocks)])
        assert {leaf.block for leaf in self.expectations.leaves()} == {
            group.blocks[-1].block for group in self.groups if group.blocks[-1].due_rank is None
        }


TestExpectedGroups = ExpectedGroups.TestCase
TestExpectedGroups.settings = settings(max_examples=150, stateful_step_count=40)


def test_entries_of_ended_expectations_are_removed() -> None:
    now = 0.0
    expectations = Expectations(lambda: now, limit=8)
    most = 0
    for number in range(4999):
        block = Block(number, is_evictable=True)
        expectations.add([block], now, [30.0, 1e9])
        expectations.offer(block)
        now += 0.01
        most = max(most, expectations.entry_count)
        if number % 3:
            expectations.discard(block)
    assert len(expectations) == 8
    assert most <= 2 * (4 * 8 + 64)


def test_forecast_is_computed_once_while_it_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, now = [], 0.0

    def counted(returns: tuple[float, ...], age: float) -> float:
        calls.append(age)
        return expected_wait(returns, age)

    monkeypatch.setattr("engine.kv.expectations.expected_wait", counted)
    expectations = Expectations(lambda: now)
    for number in range(100):
        block = Block(number, is_evictable=True)
        expectations.add([block], 0.0, [10.0])
        expectations.offer(block)
    assert len(calls) == 100
    for _ in range(1000):
        expectations.select()
    assert len(calls) == 100
    now = 32.0
    for _ in range(1000):
        expectations.select()
    assert len(calls) == 200
    now = 35.9
    expectations.select()
    assert len(calls) == 200, "after 32 s, a forecast is valid for 4 s"
    now = 36.0
    expectations.select()
    assert len(calls) == 300


NUMBERS = st.floats() | st.floats(0, 1e4)


@given(st.lists(NUMBERS, max_size=2 * MAX_RETURNS))
def test_valid_durations_are_finite_sorted_and_bounded(returns: list[float]) -> None:
    valid = valid_returns(returns)
    assert valid == sorted(valid)
    assert all(0 <= seconds < math.inf for seconds in valid)
    assert len(valid) <= MAX_RETURNS
    if len(returns) <= MAX_RETURNS:
        assert valid == sorted(seconds for seconds in returns if 0 <= seconds < math.inf)


def test_many_durations_are_represented_by_some_at_equal_distances() -> None:
    valid = valid_returns([float(number) for number in range(1280)])
    assert valid == [float(number) for number in range(5, 1280, 10)]


def test_an_owner_with_many_expectations_ends_no_others() -> None:
    expectations = Expectations(lambda: 0.0, limit=8)
    modest = [Block(number, owner=1, is_evictable=True) for number in range(3)]
    greedy = [Block(number, owner=2, is_evictable=True) for number in range(3, 40)]
    for block in (*modest, *greedy):
        expectations.add([block], 0.0, [10.0])
        expectations.offer(block)
    assert expectations.block_counts(lambda blocks, wait: True) == {1: 3, 2: 5}
