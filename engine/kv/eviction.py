"""Which cached blocks go first when room is needed: those that are likely to be read again last.

Some are known to be read again: contexts that gave their blocks back wait to go on. These are kept to the last, the
most urgent longest. For all others it is learned. A block that was read often is likely to be read again soon, and one
that was just read is likelier than one that was read long ago. So blocks are put into classes by how often they were
read; of each class is learned how long its blocks waited for being read again, evicted ones too, as long as they are
remembered; and that block goes whose age, together with the mean of its class, is highest. Where all classes are alike,
and as long as nothing was learned, this is least recently used.

Time is counted in blocks that were given back, so that a quiet night changes nothing.
"""

import heapq
from collections import OrderedDict
from collections.abc import Iterator
from typing import Protocol

CLASSES = 6
"""Read once, twice, 3 or 4 times, 5 to 8, 9 to 16, and more often."""
_PRIOR = 0.05
"""Before anything was seen, such a share of the pool's blocks counts as seen to be read again, after a turn of the
pool."""
_FADES = 8
"""What was seen counts half after so many turns of the pool."""


class Evictable(Protocol):
    """A block in a prefix tree."""

    block: int
    """Its number."""
    used: int
    """When it was given back, the last time."""
    reads: int
    """How often contexts read it."""
    path: int
    """A digest of its tokens and those before them."""

    due: float | None
    """The rank of the most urgent context that will come back for it, if there is one."""
    evictable: bool
    """Whether nobody holds it, and nothing stands behind it."""


class EvictionPolicy:
    """Owner of the order in which blocks are given up, and of what was learned."""

    def __init__(self, blocks: int, *, learns: bool = True) -> None:
        """`blocks`: of the pool. One that does not learn goes by least recent use alone."""
        self._blocks = blocks
        self._learns = learns
        self.clock = 0
        self._waiting: list[list[tuple[int, int, Evictable]]] = [[] for _ in range(CLASSES)]
        """By class: when given back, a number, the block. A note whose time is not the block's is void."""
        self._awaited: list[tuple[float, int, int, Evictable]] = []
        """Those that somebody will come back for, the least urgent first."""
        self._evicted: OrderedDict[int, tuple[int, int]] = OrderedDict()
        """What they were when they were evicted, by their paths: when given back last, and how often read."""
        self._exposure = [_PRIOR * blocks * blocks] * CLASSES
        """Time that blocks of a class waited, together."""
        self._again = [_PRIOR * blocks] * CLASSES
        """How many of them were read again."""
        self._faded = 0

    def offer(self, block: Evictable) -> None:
        """It can be given up, as long as it stays as it is."""
        due = block.due
        if due is not None:
            heapq.heappush(self._awaited, (-due, block.used, id(block), block))
        else:
            heapq.heappush(self._waiting[_class(block.reads)], (block.used, id(block), block))
        if len(self) > 4 * self._blocks:
            self._tidy()

    def __len__(self) -> int:
        return len(self._awaited) + sum(map(len, self._waiting))

    def offered(self) -> Iterator[Evictable]:
        """The blocks that can be given up."""
        for waiting in self._waiting:
            yield from (block for used, _, block in waiting if _stands(block, used, awaited=False))
        yield from (block for _, used, _, block in self._awaited if _stands(block, used, awaited=True))

    def given_back(self) -> int:
        """The time for a block that was just given back."""
        self.clock += 1
        if self.clock - self._faded > _FADES * self._blocks:
            self._faded = self.clock
            self._exposure = [seconds / 2 for seconds in self._exposure]
            self._again = [count / 2 for count in self._again]
        return self.clock

    def read_again(self, block: Evictable) -> None:
        """It was found and is held again."""
        self._learn(block.reads, self.clock - block.used, again=True)

    def returned(self, path: int) -> int:
        """A block is computed anew. How often it had been read when it was evicted, if that is remembered."""
        found = self._evicted.pop(path, None)
        if found is None:
            return 0
        used, reads = found
        self._learn(reads, self.clock - used, again=True)
        return reads

    def evicted(self, path: int) -> bool:
        """Whether it was there, and was given up not long ago."""
        return path in self._evicted

    def _learn(self, reads: int, waited: int, *, again: bool) -> None:
        if self._learns:
            at = _class(reads)
            self._exposure[at] += waited
            self._again[at] += again

    def choose(self) -> Evictable | None:
        """The block to give up, if there is one. It is remembered for a while."""
        best, worst = None, -1.0
        for at, waiting in enumerate(self._waiting):
            while waiting and not _stands(waiting[0][-1], waiting[0][0], awaited=False):
                heapq.heappop(waiting)
            if waiting:
                far = self.clock - waiting[0][0] + self._exposure[at] / self._again[at]
                if far > worst:
                    best, worst = waiting, far
        if best is not None:
            block = heapq.heappop(best)[-1]
        else:
            while self._awaited and not _stands(self._awaited[0][-1], self._awaited[0][1], awaited=True):
                heapq.heappop(self._awaited)
            if not self._awaited:
                return None
            block = heapq.heappop(self._awaited)[-1]
        self._remember(block)
        return block

    def _remember(self, block: Evictable) -> None:
        self._evicted[block.path] = block.used, block.reads
        if len(self._evicted) > 2 * self._blocks:
            _, (used, reads) = self._evicted.popitem(last=False)
            self._learn(reads, self.clock - used, again=False)

    def _tidy(self) -> None:
        for at, waiting in enumerate(self._waiting):
            self._waiting[at] = [note for note in waiting if _stands(note[-1], note[0], awaited=False)]
            heapq.heapify(self._waiting[at])
        self._awaited = [note for note in self._awaited if _stands(note[-1], note[1], awaited=True)]
        heapq.heapify(self._awaited)


def _class(reads: int) -> int:
    return min(CLASSES - 1, (reads - 1).bit_length())


def _stands(block: Evictable, used: int, *, awaited: bool) -> bool:
    """Whether a note still says what is."""
    return block.evictable and block.used == used and (block.due is not None) == awaited
