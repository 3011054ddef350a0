"""Server-Sent Events."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from aiohttp import web

from gateway.http.bodies import encode_json

REQUEST_ID = web.RequestKey("request_id", str)
"""What every answer carries as x-request-id."""

_HEARTBEAT_SECONDS = 15.0
"""The longest silence on a stream."""

_READER_SECONDS = 300.0
"""So long a client may read nothing of what is written to it."""

_Told = TypeVar("_Told")


class SlowReader(ConnectionError):
    """A client kept its connection and read nothing; it was closed."""


class EventStream:
    """Writes events to one client. A client that went away is noticed by whoever awaits the request."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-cache",
                "X-Accel-Buffering": "no",
                "x-request-id": request[REQUEST_ID],
            }
        )

    @property
    def begun(self) -> bool:
        """Whether the status line is out, so that errors can only be told as events."""
        return self._response.prepared

    async def data(self, *events: Any) -> None:
        """Events with JSON data, in one write."""
        await self._write(b"".join(b"data: " + encode_json(event) + b"\n\n" for event in events))

    async def event(self, name: str, value: Any, id: int | None = None) -> None:
        """One named event, with an id that a client can go on from."""
        head = f"event: {name}\n" if id is None else f"id: {id}\nevent: {name}\n"
        await self._write(head.encode() + b"data: " + encode_json(value) + b"\n\n")

    async def patiently(self, wait: Callable[[], Awaitable[_Told]], first: float = _HEARTBEAT_SECONDS) -> _Told:
        """What `wait` returns, which may be cancelled and called again; comments are signs of life until then.

        `first`: the longest silence in seconds before the status line is out.
        """
        while True:
            try:
                async with asyncio.timeout(_HEARTBEAT_SECONDS if self.begun else first):
                    return await wait()
            except TimeoutError:
                await self._write(b": waiting\n\n")

    async def end(self, *, done: bool = True) -> web.StreamResponse:
        """`done`: with OpenAI's closing event."""
        await self._write(b"data: [DONE]\n\n" if done else b"")
        await self._response.write_eof()
        return self._response

    async def _write(self, data: bytes) -> None:
        """Waits while the client reads too slowly. What is made meanwhile stays in its variable; no engine waits.

        Raises SlowReader if it takes too long.
        """
        if not self.begun:
            await self._response.prepare(self._request)
        transport = self._request.transport
        if transport is None or not transport.get_write_buffer_size():  # it takes all of it at once
            await self._response.write(data)
            return
        try:
            async with asyncio.timeout(_READER_SECONDS):
                await self._response.write(data)
        except TimeoutError:
            transport.abort()
            raise SlowReader(f"the client has read nothing for {_READER_SECONDS:g} s") from None
