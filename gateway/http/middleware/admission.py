"""Start a few requests at a time, so that streams continue in between.

Starting a request takes as long as forwarding ten tokens. Without this gate, a hundred requests that arrive together
would start in one turn of the event loop, and all streams would stall for that time.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

_REQUESTS_PER_TURN = 2
"""Number of requests that start in one turn of the event loop."""


class AdmissionGate:
    """Owner of the queue of requests that have not started. Requests do not wait while few arrive."""

    def __init__(self) -> None:
        self._queue: deque[asyncio.Future[None]] = deque()
        self._remaining = _REQUESTS_PER_TURN
        """Number of requests that may still start in this turn."""
        self._turn_scheduled = False

    def enter(self) -> asyncio.Future[None] | None:
        """Return a future to wait for, in the order of arrival; None if the request may start now."""
        loop = asyncio.get_running_loop()
        if not self._turn_scheduled:
            self._turn_scheduled = True
            loop.call_soon(self._turn)
        if self._remaining:  # so the queue is empty
            self._remaining -= 1
            return None
        admitted = loop.create_future()
        self._queue.append(admitted)
        return admitted

    def _turn(self) -> None:
        self._remaining = _REQUESTS_PER_TURN
        while self._remaining and self._queue:
            admitted = self._queue.popleft()
            if not admitted.done():  # a client that waited may have disconnected
                admitted.set_result(None)
                self._remaining -= 1
        self._turn_scheduled = self._remaining < _REQUESTS_PER_TURN
        if self._turn_scheduled:
            asyncio.get_running_loop().call_soon(self._turn)


ADMISSION = web.AppKey("admission", AdmissionGate)
"""Gate of all requests, and of messages that are requests."""


def admission_gate(gate: AdmissionGate) -> Middleware:
    """Return middleware that lets requests pass the gate before any other work for them."""

    async def wait(admitted: asyncio.Future[None], request: web.Request, handler: Handler) -> web.StreamResponse:
        await admitted
        return await handler(request)

    @web.middleware
    def enter(request: web.Request, handler: Handler) -> Awaitable[web.StreamResponse]:
        admitted = gate.enter()
        return handler(request) if admitted is None else wait(admitted, request, handler)

    return enter
