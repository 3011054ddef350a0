"""Limit of concurrent requests to an upstream server. The most urgent request goes first."""

import asyncio
import heapq
import itertools


class ConcurrencySlot:
    """Place of a request in the queue. The lowest rank goes first."""

    __slots__ = ("admitted", "rank")

    def __init__(self, rank: float) -> None:
        self.rank = rank
        self.admitted: asyncio.Future[None] | None = None
        """Future of the waiting request; None if it does not wait."""


class ConcurrencyLimiter:
    """Owner of the queue. `limit` can be raised at any time; it applies to requests that arrive after that."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.running = 0
        self._queue: list[tuple[float, int, ConcurrencySlot]] = []
        """Heap of slots. An entry is valid if its rank is still the slot's, and the slot still waits."""
        self._numbers = itertools.count()

    async def acquire(self, slot: ConcurrencySlot) -> None:
        """Wait until the request may be sent. Pair it with `release`."""
        if self.running < self.limit and not self._queue:
            self.running += 1
            return
        slot.admitted = asyncio.get_running_loop().create_future()
        self._enqueue(slot)
        self._admit()
        try:
            await slot.admitted
        except asyncio.CancelledError:
            if slot.admitted.done() and not slot.admitted.cancelled():  # it was admitted in the same turn of the loop
                self.release()
            raise
        finally:
            slot.admitted = None

    def release(self) -> None:
        """End a request, and admit the next one."""
        self.running -= 1
        self._admit()

    def rerank(self, slot: ConcurrencySlot, rank: float) -> None:
        """Change the rank of a request from now on."""
        if slot.rank != rank:
            slot.rank = rank
            if slot.admitted is not None and not slot.admitted.done():
                self._enqueue(slot)

    def _enqueue(self, slot: ConcurrencySlot) -> None:
        heapq.heappush(self._queue, (slot.rank, next(self._numbers), slot))

    def _admit(self) -> None:
        while self._queue and self.running < self.limit:
            rank, _, slot = heapq.heappop(self._queue)
            if slot.admitted is not None and not slot.admitted.done() and rank == slot.rank:
                self.running += 1
                slot.admitted.set_result(None)
