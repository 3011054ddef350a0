"""Readers that are expected to return for released blocks, and the order in which the pool evicts them.

After an answer of an agent, a request usually extends it, once the tools have run or a person has read it. The gateway
sends the durations of earlier gaps of this kind. So the blocks of the answer have a forecast, see `forecast.py`, which
changes while time passes. Computing it for each evicted block would be too slow. It is cached for half a second, and
for longer the longer the reader has been away.

The reader may not read all blocks of its group again: a client drops the reasoning of an answer, or rewrites its last
messages. So the reader counts as returned once three quarters of the group are read, and the rest is ordinary then.
Otherwise each turn would leave blocks that seem to be read soon, and other requests would wait for them.
"""

import heapq
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from engine.kv.forecast import expected_wait

MAX_EXPECTATIONS = 1024
"""Maximum number of expected readers. With more, the oldest expectation of the owner with the most ends, and its blocks
become ordinary."""
MAX_RETURNS = 128
"""Maximum number of durations in an expectation."""
_FRESH_SECONDS = 0.5
"""Minimum time for which a forecast is cached, in seconds."""
_FRESH_SHARE = 1 / 8
"""Time for which a forecast is cached, as a share of the time since the release."""
_RETURN_RATIO = 3
"""Number of blocks of a group that were read, relative to those that are left, from which its reader has returned. On
recorded agents, 1 and 9 took as long."""
_SAME = 0.9
"""Ratio of two forecasts from which they count as equal. Then the policy continues with the group that it selected
last."""


class Evictable(Protocol):
    """A block in a prefix tree."""

    block: int
    """Number of the block."""
    last_release: int
    """Time of its last release, on the policy's clock."""
    read_count: int
    """Number of sequences that read it."""
    path: int
    """Digest of its tokens and those before them."""
    owner: int
    """Number of the owner of its scope."""

    due_rank: float | None
    """Rank of the most urgent sequence that will come back for it, or None."""
    expectation: "Expectation | None"
    """The latest expectation for this block, or None. It may have ended."""

    @property
    def is_evictable(self) -> bool:
        """Whether no sequence holds it and no block follows it."""


class Expectation:
    """Expectation that one reader returns for a group of blocks, all of one path.

    `owner`: number of the owner of the blocks' scope. `released`: time when the reader released them, in seconds.
    `returns`: sorted durations of earlier gaps, in seconds. `block_count`: number of blocks in the group. `leaf`: the
    last block that was offered for eviction. `read_count`: number of its blocks that were read since. `wait`: the
    cached forecast, in seconds; None before the first one. `refresh_time`: end of its validity, in seconds.
    `is_queued`: whether the group has an entry in the order.
    """

    __slots__ = (
        "block_count",
        "is_live",
        "is_queued",
        "leaf",
        "number",
        "owner",
        "read_count",
        "refresh_time",
        "released",
        "returns",
        "wait",
    )

    def __init__(self, number: int, owner: int, released: float, returns: tuple[float, ...]) -> None:
        self.number = number
        self.owner = owner
        self.released = released
        self.returns = returns
        self.block_count = 0
        self.read_count = 0
        self.leaf: Evictable | None = None
        self.wait: float | None = None
        self.refresh_time = math.inf
        self.is_queued = False
        self.is_live = True
        """Whether the reader is still expected. If not, the blocks are ordinary."""


class Expectations:
    """Owner of the expectations and of the order of their groups, the longest forecast first."""

    def __init__(self, now: Callable[[], float] = time.monotonic, *, limit: int = MAX_EXPECTATIONS) -> None:
        """Start without expectations. `now`: clock in seconds. `limit`: maximum number of expectations."""
        self.now = now
        self._limit = limit
        self._live: dict[int, Expectation] = {}
        """Expectations by number, the oldest first."""
        self._by_owner: dict[int, dict[int, Expectation]] = {}
        """The same by owner."""
        self.added = 0
        """Number of expectations so far."""
        self._order: list[tuple[float, int, Expectation]] = []
        """Heap: minus the wait, number, expectation. An entry is stale if its wait is not the expectation's."""
        self._refreshes: list[tuple[float, int, Expectation]] = []
        """Heap: time at which the forecast becomes invalid, number, expectation."""
        self._current: Expectation | None = None
        """Expectation that `select` returned last."""

    def __len__(self) -> int:
        return len(self._live)

    @property
    def entry_count(self) -> int:
        """Number of entries of the heaps, stale ones included."""
        return len(self._order) + len(self._refreshes)

    def add(self, blocks: Sequence[Evictable], released: float, returns: Sequence[float]) -> Evictable | None:
        """Expect a reader for a group of blocks. This replaces earlier expectations for these blocks.

        Arguments as in `Expectation`; neither `blocks` nor `returns` is empty. Return the leaf that becomes ordinary
        because there are too many expectations, or None.
        """
        self.added += 1
        expectation = Expectation(self.added, blocks[0].owner, released, tuple(returns))
        for block in blocks:
            self.discard(block)
            block.expectation = expectation
            expectation.block_count += 1
        self._live[expectation.number] = expectation
        self._by_owner.setdefault(expectation.owner, {})[expectation.number] = expectation
        if len(self._live) <= self._limit:
            return None
        oldest = next(iter(max(self._by_owner.values(), key=len).values()))
        leaf = oldest.leaf
        self._end(oldest)
        return leaf

    def discard(self, block: Evictable) -> None:
        """Record that a block was evicted or is not expected to be read any more."""
        expectation, block.expectation = block.expectation, None
        if expectation is None or not expectation.is_live:
            return
        if expectation.leaf is block:
            expectation.leaf = None
        expectation.block_count -= 1
        if not expectation.block_count:
            self._end(expectation)

    def read(self, block: Evictable) -> Evictable | None:
        """Record that a sequence reads a block. If the reader of its group has returned, end the expectation, and
        return the leaf that becomes ordinary, or None.

        One block is not enough: other conversations may share the beginning of the group.
        """
        expectation = block.expectation
        self.discard(block)
        if expectation is None or not expectation.is_live:
            return None
        expectation.read_count += 1
        if expectation.read_count < _RETURN_RATIO * expectation.block_count:
            return None
        leaf = expectation.leaf
        self._end(expectation)
        return leaf

    def offer(self, leaf: Evictable) -> None:
        """Record the evictable block at the end of its group."""
        expectation = leaf.expectation
        assert expectation is not None
        assert expectation.is_live
        expectation.leaf = leaf
        if expectation.wait is None:
            self._rank(expectation, self.now())
        elif not expectation.is_queued:
            self._queue(expectation, expectation.wait)

    def select(self) -> Expectation | None:
        """Return an expectation with a leaf that can be evicted and, but for small differences, the longest forecast.

        Return None if there is none.
        """
        self._refresh()
        while self._order:
            minus_wait, _, best = self._order[0]
            if best.is_live and best.wait == -minus_wait:
                if _has_leaf(best):
                    break
                best.is_queued = False  # the next offer queues it again
            heapq.heappop(self._order)
        else:
            return None
        current = self._current
        if (
            current is None
            or current.wait is None
            or current.wait < _SAME * -self._order[0][0]
            or not _has_leaf(current)
        ):
            self._current = best
        return self._current

    def block_counts(self, counts: Callable[[int, float], bool]) -> dict[int, int]:
        """Return the number of blocks in groups, by the number of the owner. `counts` returns whether a group counts,
        from its number of blocks and its forecast, which may be as old as it is cached."""
        self._refresh()
        found: dict[int, int] = {}
        for expectation in self._live.values():
            if expectation.wait is not None and counts(expectation.block_count, expectation.wait):
                found[expectation.owner] = found.get(expectation.owner, 0) + expectation.block_count
        return found

    def leaves(self) -> Iterator[Evictable]:
        """Yield the blocks that can be evicted."""
        for expectation in self._live.values():
            if expectation.leaf is not None and _has_leaf(expectation):
                yield expectation.leaf

    def check_integrity(self, blocks: Iterable[Evictable]) -> None:
        """Recount the groups from all blocks. Raises AssertionError on any difference."""
        counts: dict[int, int] = {}
        for block in blocks:
            if block.expectation is not None and block.expectation.is_live:
                counts[block.expectation.number] = counts.get(block.expectation.number, 0) + 1
        known = {number: expectation.block_count for number, expectation in self._live.items()}
        assert counts == known, "the blocks of the expectations are miscounted"
        assert len(known) <= self._limit, "too many expectations"
        of_owners = {number for of_owner in self._by_owner.values() for number in of_owner}
        assert of_owners == set(self._live), "the expectations of the owners are off"
        for expectation in self._live.values():
            assert expectation.leaf is None or expectation.leaf.expectation is expectation, (
                "an expectation has a leaf of another group"
            )
        assert self.entry_count <= 2 * _max_entries(self._limit), "stale entries were not removed"

    def _refresh(self) -> None:
        """Compute the forecasts again whose validity has ended."""
        now = self.now()
        while self._refreshes and self._refreshes[0][0] <= now:
            refresh_time, _, expectation = heapq.heappop(self._refreshes)
            if expectation.is_live and expectation.refresh_time == refresh_time:
                self._rank(expectation, now)

    def _rank(self, expectation: Expectation, now: float) -> None:
        age = max(0.0, now - expectation.released)
        wait = expected_wait(expectation.returns, age)
        expectation.refresh_time = now + max(_FRESH_SECONDS, _FRESH_SHARE * age)
        heapq.heappush(self._refreshes, (expectation.refresh_time, expectation.number, expectation))
        if wait != expectation.wait or not expectation.is_queued:
            self._queue(expectation, wait)
        else:
            self._bound_heaps()

    def _queue(self, expectation: Expectation, wait: float) -> None:
        expectation.wait, expectation.is_queued = wait, True
        heapq.heappush(self._order, (-wait, expectation.number, expectation))
        self._bound_heaps()

    def _bound_heaps(self) -> None:
        if max(len(self._order), len(self._refreshes)) > _max_entries(len(self._live)):
            self._drop_stale_entries()

    def _end(self, expectation: Expectation) -> None:
        expectation.is_live = False
        expectation.leaf = None
        expectation.returns = ()
        del self._live[expectation.number]
        of_owner = self._by_owner[expectation.owner]
        del of_owner[expectation.number]
        if not of_owner:
            del self._by_owner[expectation.owner]
        if self._current is expectation:
            self._current = None

    def _drop_stale_entries(self) -> None:
        self._order, self._refreshes = [], []
        for expectation in self._live.values():
            if expectation.wait is not None:
                expectation.is_queued = True
                self._order.append((-expectation.wait, expectation.number, expectation))
                self._refreshes.append((expectation.refresh_time, expectation.number, expectation))
        heapq.heapify(self._order)
        heapq.heapify(self._refreshes)


def valid_returns(returns: Sequence[float]) -> list[float]:
    """Return the durations that an expectation can use, sorted: those that are finite and not negative.

    Of more than `MAX_RETURNS` durations, retain as many at equal distances. They are sorted, so these represent the
    others.
    """
    count = len(returns)
    if count > MAX_RETURNS:
        returns = [returns[(2 * index + 1) * count // (2 * MAX_RETURNS)] for index in range(MAX_RETURNS)]
    return sorted(seconds for seconds in returns if math.isfinite(seconds) and seconds >= 0)


def _max_entries(expectations: int) -> int:
    """Return the number of entries of a heap beyond which stale ones are removed."""
    return 4 * expectations + 64


def _has_leaf(expectation: Expectation) -> bool:
    """Return whether a block of the group can be evicted, and no preempted sequence will come back for it."""
    leaf = expectation.leaf
    return leaf is not None and leaf.is_evictable and leaf.due_rank is None
