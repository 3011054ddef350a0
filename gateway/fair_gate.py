"""Lets work that holds up the event loop through one piece at a time, in turns between keys."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_LONGEST_REST = 1.0
"""Seconds."""


class FairGate:
    """Owner of the queues before it, one for each tenant.

    After each piece of work the gate rests for as long as the work took. So the event loop spends at most half of its
    time on such work, and every other client has its turn between two pieces.
    """

    def __init__(self) -> None:
        self._busy = False
        self._queues: dict[str, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def turn(self, tenant: str) -> AsyncIterator[None]:
        """Wait for the tenant's turn, and hold the gate while the body runs. The body must not wait for long."""
        await self._enter(tenant)
        began = time.monotonic()
        try:
            yield
        finally:
            rest = min(time.monotonic() - began, _LONGEST_REST)
            asyncio.get_running_loop().call_later(rest, self._open)

    async def _enter(self, tenant: str) -> None:
        if not self._busy:
            self._busy = True
            return
        place = asyncio.get_running_loop().create_future()
        self._queues.setdefault(tenant, deque()).append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # the turn came just before: the next one gets it
                self._open()
            raise

    def _open(self) -> None:
        """Let the next one in: of the tenant that has waited for its turn longest."""
        while self._queues:
            tenant = next(iter(self._queues))
            queue = self._queues.pop(tenant)
            place = queue.popleft()
            if queue:
                self._queues[tenant] = queue  # at the end
            if not place.done():
                place.set_result(None)
                return
        self._busy = False
