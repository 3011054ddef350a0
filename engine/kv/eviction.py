"""Eviction policy of cached blocks: those that are likely to be reused soon go last.

Some blocks will certainly be reused: preempted sequences come back for them. These go last, and the most urgent last of
all. For the others the policy learns. A block that was read often is likely to be read again soon, and one that was
just read is likelier than one that was read long ago. So blocks are put into classes by how often they were read. For
each class, the policy learns how long its blocks waited for the next read, including evicted ones as long as it
remembers them. It evicts the block whose age, together with the mean wait of its class, is highest. If all classes are
alike, and before anything is learned, this is least recently used.

For some blocks, a reader is expected to return in a time that is known from earlier cases; see `expectations.py`. The
expected wait takes the place of age and mean wait. It is in seconds, so it counts as many ticks of the clock as there
were in so many seconds during the last turn of the pool.

The clock counts released blocks, so time without requests changes nothing.
"""

import heapq
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from engine.kv.expectations import Evictable, Expectations

CLASSES = 6
"""Number of classes: blocks read once, twice, 3 or 4 times, 5 to 8, 9 to 16, and more often."""
_PRIOR = 0.05
"""Prior: this share of the pool's blocks counts as reused after one turn of the pool."""
_FADES = 8
"""Number of turns of the pool after which observations count half."""
_RATE_SAMPLES = 8
"""Number of times per turn of the pool at which the rate of the clock is measured."""


class EvictionPolicy:
    """Owner of the eviction order and of the learned waits."""

    def __init__(self, blocks: int, *, learns: bool = True, now: Callable[[], float] = time.monotonic) -> None:
        """Start without observations. `blocks`: size of the pool. Without `learns`, the policy is least recently used.
        `now`: clock of the expectations, in seconds."""
        self.now = now
        self._expectations = Expectations(now)
        self._rate_samples: deque[tuple[int, float]] = deque()
        """Clock and time in seconds, at equal intervals of the clock. The first one is at least a turn of the pool ago,
        once the pool has turned once."""
        self._next_sample = 0
        self._blocks = blocks
        self._learns = learns
        self.clock = 0
        self._heaps: list[list[tuple[int, int, Evictable]]] = [[] for _ in range(CLASSES)]
        """Heap for each class: time of release, a number, the block. An entry is stale if its time is not the
        block's."""
        self._due_heap: list[tuple[float, int, int, Evictable]] = []
        """Heap of blocks that a sequence will come back for, the least urgent first."""
        self._evictions: OrderedDict[int, tuple[int, int]] = OrderedDict()
        """Last release and number of reads of evicted blocks, by path."""
        self._exposure = [_PRIOR * blocks * blocks] * CLASSES
        """Total time that blocks of each class waited."""
        self._reuses = [_PRIOR * blocks] * CLASSES
        """Number of blocks of each class that were read again."""
        self._last_fade = 0

    def offer(self, block: Evictable) -> None:
        """Add a block to the candidates; its entry is stale once the block changes."""
        due = block.due_rank
        if due is not None:
            heapq.heappush(self._due_heap, (-due, block.last_release, id(block), block))
        elif _is_expected(block):
            self._expectations.offer(block)
        else:
            heapq.heappush(self._heaps[_class(block.read_count)], (block.last_release, id(block), block))
        if len(self) > 4 * self._blocks:
            self._drop_stale_entries()

    def __len__(self) -> int:
        return len(self._due_heap) + sum(map(len, self._heaps))

    def candidates(self) -> Iterator[Evictable]:
        """Yield the blocks that can be evicted."""
        for waiting in self._heaps:
            yield from (block for used, _, block in waiting if _is_current(block, used, is_due=False))
        yield from (block for _, used, _, block in self._due_heap if _is_current(block, used, is_due=True))
        yield from self._expectations.leaves()

    def record_release(self) -> int:
        """Advance the clock for a released block, and return the time."""
        self.clock += 1
        if self._learns and self.clock >= self._next_sample:
            self._sample_rate()
        if self.clock - self._last_fade > _FADES * self._blocks:
            self._last_fade = self.clock
            self._exposure = [seconds / 2 for seconds in self._exposure]
            self._reuses = [count / 2 for count in self._reuses]
        return self.clock

    def _sample_rate(self) -> None:
        samples = self._rate_samples
        samples.append((self.clock, self.now()))
        self._next_sample = self.clock + max(1, self._blocks // _RATE_SAMPLES)
        while len(samples) > 1 and self.clock - samples[1][0] >= self._blocks:
            samples.popleft()

    @property
    def ticks_per_second(self) -> float | None:
        """Number of blocks released per second during about the last turn of the pool; None before it has turned
        once."""
        if not self._rate_samples:
            return None
        clock, began = self._rate_samples[0]
        seconds = self.now() - began
        return (self.clock - clock) / seconds if self.clock - clock >= self._blocks and seconds > 0 else None

    def expect(self, blocks: Sequence[Evictable], released: float, returns: Sequence[float]) -> None:
        """Expect a reader for released blocks; see `Expectation`. Without `returns`, the blocks become ordinary.

        `blocks`: a leaf that can be evicted, its parent, and so on.
        """
        if not self._learns:
            return
        if returns:
            self._offer_ordinary(self._expectations.add(blocks, released, returns))
        else:
            expectation = blocks[0].expectation
            if expectation is None or not expectation.is_live:
                return
            for block in blocks:
                if block.expectation is expectation:
                    self._expectations.discard(block)
        if blocks[0].due_rank is None:  # otherwise it is among the candidates for its own reason
            self.offer(blocks[0])

    def _offer_ordinary(self, leaf: Evictable | None) -> None:
        """Add the leaf of a group whose expectation has ended to the candidates, if it can be evicted."""
        if leaf is not None and leaf.is_evictable and leaf.due_rank is None:
            self.offer(leaf)

    def record_read(self, block: Evictable) -> None:
        """Record that a sequence reads a block that none held; see `Expectations.read`."""
        if block.expectation is not None:
            self._offer_ordinary(self._expectations.read(block))

    def end_expectation(self, block: Evictable) -> None:
        """Record that the block leaves the tree."""
        if block.expectation is not None:
            self._expectations.discard(block)

    @property
    def expected_readers(self) -> int:
        """Number of readers that were expected so far."""
        return self._expectations.added

    def expected_blocks(self, counts: Callable[[int, float], bool]) -> dict[int, int]:
        """Return the number of blocks that a reader is expected for; see `Expectations.block_counts`."""
        return self._expectations.block_counts(counts)

    def check_expectations(self, blocks: Iterable[Evictable]) -> None:
        """Recount the expectations from all blocks of the tree. Raises AssertionError on any difference."""
        self._expectations.check_integrity(blocks)

    def record_reuse(self, block: Evictable) -> None:
        """Record that a sequence holds the block again."""
        self._learn(block.read_count, self.clock - block.last_release, is_reused=True)

    def record_recompute(self, path: int) -> int:
        """Record that a block is computed anew. Return how often it was read before its eviction, if that is
        remembered, else 0."""
        found = self._evictions.pop(path, None)
        if found is None:
            return 0
        used, reads = found
        self._learn(reads, self.clock - used, is_reused=True)
        return reads

    def was_evicted(self, path: int) -> bool:
        """Return whether the block was evicted not long ago."""
        return path in self._evictions

    def _learn(self, reads: int, waited: int, *, is_reused: bool) -> None:
        if self._learns:
            index = _class(reads)
            self._exposure[index] += waited
            self._reuses[index] += is_reused

    def select_victim(self) -> Evictable | None:
        """Remove the next block to evict from the candidates and return it, or None. The policy remembers it for a
        while."""
        best_heap, best_score = None, -1.0
        for index, waiting in enumerate(self._heaps):
            while waiting and not _is_current(waiting[0][-1], waiting[0][0], is_due=False):
                heapq.heappop(waiting)
            if waiting:
                score = self.clock - waiting[0][0] + self._exposure[index] / self._reuses[index]
                if score > best_score:
                    best_heap, best_score = waiting, score
        expected = self._expectations.select() if len(self._expectations) else None
        if expected is not None and best_heap is not None:
            rate = self.ticks_per_second
            if rate is None or expected.wait is None or expected.wait * rate <= best_score:
                expected = None
        if expected is not None:
            assert expected.leaf is not None
            block = expected.leaf
            self._expectations.discard(block)
        elif best_heap is not None:
            block = heapq.heappop(best_heap)[-1]
        else:
            while self._due_heap and not _is_current(self._due_heap[0][-1], self._due_heap[0][1], is_due=True):
                heapq.heappop(self._due_heap)
            if not self._due_heap:
                return None
            block = heapq.heappop(self._due_heap)[-1]
        self._remember(block)
        return block

    def _remember(self, block: Evictable) -> None:
        self._evictions[block.path] = block.last_release, block.read_count
        if len(self._evictions) > 2 * self._blocks:
            _, (used, reads) = self._evictions.popitem(last=False)
            self._learn(reads, self.clock - used, is_reused=False)

    def _drop_stale_entries(self) -> None:
        for index, waiting in enumerate(self._heaps):
            # a block whose expectation began and ended may be there twice
            self._heaps[index] = list({entry for entry in waiting if _is_current(entry[-1], entry[0], is_due=False)})
            heapq.heapify(self._heaps[index])
        self._due_heap = [entry for entry in self._due_heap if _is_current(entry[-1], entry[1], is_due=True)]
        heapq.heapify(self._due_heap)


def _class(reads: int) -> int:
    return min(CLASSES - 1, (reads - 1).bit_length())


def _is_current(block: Evictable, used: int, *, is_due: bool) -> bool:
    """Return whether an entry is not stale."""
    if not block.is_evictable or block.last_release != used or (block.due_rank is not None) != is_due:
        return False
    return is_due or not _is_expected(block)


def _is_expected(block: Evictable) -> bool:
    """Return whether a reader is expected for the block."""
    return block.expectation is not None and block.expectation.is_live
