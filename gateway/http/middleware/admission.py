"""New requests a few at a time, so that answers that stream go on between them.

To begin a request takes as long as to pass on ten tokens. A hundred that come at once would be begun in one turn of the
event loop, and every stream would stand still for that long.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

_AT_ONCE = 2
"""Requests that are begun in one turn of the event loop."""


class AdmissionGate:
    """Owner of the line before it. Nobody waits where few come."""

    def __init__(self) -> None:
        self._line: deque[asyncio.Future[None]] = deque()
        self._left = _AT_ONCE
        """How many more may enter in this turn."""
        self._turning = False

    def enter(self) -> asyncio.Future[None] | None:
        """Its turn, to be waited for, in the order of coming; or None, if it is now."""
        loop = asyncio.get_running_loop()
        if not self._turning:
            self._turning = True
            loop.call_soon(self._turn)
        if self._left:  # then nobody waits
            self._left -= 1
            return None
        place = loop.create_future()
        self._line.append(place)
        return place

    def _turn(self) -> None:
        self._left = _AT_ONCE
        while self._left and self._line:
            place = self._line.popleft()
            if not place.done():  # whoever waited there may have gone
                place.set_result(None)
                self._left -= 1
        self._turning = self._left < _AT_ONCE
        if self._turning:
            asyncio.get_running_loop().call_soon(self._turn)


def admission_gate() -> Middleware:
    """Has requests pass a turnstile before anything is done for them."""
    turnstile = AdmissionGate()

    async def wait(place: asyncio.Future[None], request: web.Request, handler: Handler) -> web.StreamResponse:
        await place
        return await handler(request)

    @web.middleware
    def enter(request: web.Request, handler: Handler) -> Awaitable[web.StreamResponse]:
        place = turnstile.enter()
        return handler(request) if place is None else wait(place, request, handler)

    return enter
