"""Who may ask a server next, where it takes only so many requests at a time: whoever is most urgent."""

import asyncio
import heapq
import itertools


class ConcurrencySlot:
    """A request's place in the line. `rank`: lower goes first."""

    __slots__ = ("rank", "ready")

    def __init__(self, rank: float) -> None:
        self.rank = rank
        self.ready: asyncio.Future[None] | None = None
        """There while it waits."""


class ConcurrencyLimiter:
    """Owner of the line. `limit` may be raised at any time, and counts for whoever comes then."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.running = 0
        self._line: list[tuple[float, int, ConcurrencySlot]] = []
        """A heap; an entry counts if its rank still is the turn's and the turn still waits."""
        self._numbers = itertools.count()

    @property
    def waiting(self) -> int:
        """About how many wait."""
        return len(self._line)

    async def take(self, turn: ConcurrencySlot) -> None:
        """Waits for the turn. Pair with `leave`."""
        if self.running < self.limit and not self._line:
            self.running += 1
            return
        turn.ready = asyncio.get_running_loop().create_future()
        self._stand(turn)
        self._admit()
        try:
            await turn.ready
        except asyncio.CancelledError:
            if turn.ready.done() and not turn.ready.cancelled():  # it had just been given one
                self.leave()
            raise
        finally:
            turn.ready = None

    def leave(self) -> None:
        """It is somebody else's turn."""
        self.running -= 1
        self._admit()

    def rerank(self, turn: ConcurrencySlot, rank: float) -> None:
        """From here on."""
        if turn.rank != rank:
            turn.rank = rank
            if turn.ready is not None and not turn.ready.done():
                self._stand(turn)

    def _stand(self, turn: ConcurrencySlot) -> None:
        heapq.heappush(self._line, (turn.rank, next(self._numbers), turn))

    def _admit(self) -> None:
        while self._line and self.running < self.limit:
            rank, _, turn = heapq.heappop(self._line)
            if turn.ready is not None and not turn.ready.done() and rank == turn.rank:
                self.running += 1
                turn.ready.set_result(None)
