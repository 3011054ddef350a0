"""Admit work in turns between tenants: one piece at a time if it blocks the event loop, else a fixed number."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

_MAX_REST = 1.0
"""Longest pause after a piece of work, in seconds."""


class FairGate:
    """Gate with one queue for each tenant.

    After each piece of work the gate stays closed for as long as the work took, at most 1 s. So the event loop spends
    only about half of its time on such work, and can serve all other clients between two pieces.
    """

    def __init__(self, *, rests: bool = True, places: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        """`rests`: whether the work blocks the event loop. Work in threads, or elsewhere, needs no rest. `places`:
        number of pieces of work that may run together. `clock`: time in seconds, which is virtual in a simulation."""
        self._rests = rests
        self._clock = clock
        self._free_places = places
        self._queues: dict[str, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def turn(self, tenant: str) -> AsyncIterator[None]:
        """Wait for the tenant's turn, and hold a place during the `async with` body, which must not wait for long."""
        await self._enter(tenant)
        began = self._clock()
        try:
            yield
        finally:
            rest = min(self._clock() - began, _MAX_REST) if self._rests else 0.0
            asyncio.get_running_loop().call_later(rest, self._open)

    async def _enter(self, tenant: str) -> None:
        if self._free_places:
            self._free_places -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._queues.setdefault(tenant, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it had just been admitted: pass the turn on
                self._open()
            raise

    def _open(self) -> None:
        """Admit the next piece of work: the first of the tenant that has waited longest for its turn."""
        while self._queues:
            tenant = next(iter(self._queues))
            queue = self._queues.pop(tenant)
            turn = queue.popleft()
            if queue:
                self._queues[tenant] = queue  # at the end: the other tenants go first
            if not turn.done():
                turn.set_result(None)
                return
        self._free_places += 1
