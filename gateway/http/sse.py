"""Server-Sent Events."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from aiohttp import hdrs, web

from gateway.http.json_body import encode_json

REQUEST_ID = web.RequestKey("request_id", str)
"""What every answer carries as x-request-id."""

HEARTBEAT_SECONDS = 15.0
"""The longest silence on a stream."""

_AT_ONCE = 32 << 10
"""Bytes that an empty buffer of a transport takes without having its writer wait."""

_READER_SECONDS = 300.0
"""So long a client may read nothing of what is written to it."""

_Told = TypeVar("_Told")


_DONE = b"data: [DONE]\n\n"


def unnamed(*values: Any) -> bytes:
    """Events with JSON data, as OpenAI's API has them."""
    return b"".join([b"data: " + encode_json(value) + b"\n\n" for value in values])


def named(name: str, value: Any, id: int | None = None) -> bytes:
    """One event with a name, and with an id that a client can go on from."""
    head = f"event: {name}\n" if id is None else f"id: {id}\nevent: {name}\n"
    return head.encode() + b"data: " + encode_json(value) + b"\n\n"


class SlowReader(ConnectionError):
    """A client kept its connection and read nothing; it was closed."""


class EventStream:
    """Writes events to one client. A client that went away is noticed by whoever awaits the request."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._reader: asyncio.Task[Any] | None = None
        """Who waits for something to tell."""
        self._due = 0.0
        """When a sign of life is, by the loop's clock."""
        self._alarm: asyncio.TimerHandle | None = None
        self._rung = False
        """Whether the alarm has just ended a wait."""
        self._begun = False
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        """There once the status line is out."""
        self._chunked = False
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
        return self._begun

    def told(self, data: bytes) -> bool:
        """Writes it at once. False, and nothing is written, where that has to be waited for: the status line is not out
        yet, or the client reads slowly or not at all, or it is much."""
        # as aiohttp's response would, at less cost: a server that streams does this for every token
        transport = self._transport
        if transport is None or transport.is_closing() or transport.get_write_buffer_size() or len(data) > _AT_ONCE:
            return False
        transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
        self._due = max(self._due, self._loop.time() + HEARTBEAT_SECONDS)
        return True

    async def patiently(self, wait: Callable[[], Awaitable[_Told]], first: float = HEARTBEAT_SECONDS) -> _Told:
        """What `wait` returns, which may be cancelled and called again; comments are signs of life until then.

        `first`: the longest silence in seconds before the status line is out.
        """
        # asyncio.timeout would set and cancel a timer for every token
        self._reader = reader = asyncio.current_task()
        assert reader is not None
        while True:
            self._set_alarm(HEARTBEAT_SECONDS if self.begun else first)
            try:
                return await wait()
            except BaseException as error:
                if not isinstance(error, asyncio.CancelledError) or not self._rung or reader.uncancel():
                    self._end_alarm()  # it is not the alarm that ended the wait, or not alone
                    raise
                self._rung = False
            finally:
                self._due = math.inf
            await self.write(b": waiting\n\n")

    def _set_alarm(self, seconds: float) -> None:
        loop = self._loop
        self._due = loop.time() + seconds
        if self._alarm is None or self._alarm.when() > self._due:
            self._end_alarm()
            self._alarm = loop.call_at(self._due, self._ring)

    def _end_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _ring(self) -> None:
        """Ends the wait if it has lasted long enough; else the alarm is set for when it will have."""
        loop, self._alarm = self._loop, None
        if self._due == math.inf:  # nobody waits
            return
        if loop.time() < self._due:
            self._alarm = loop.call_at(self._due, self._ring)
        elif self._reader is not None:
            self._rung = True
            self._reader.cancel()

    async def end(self, data: bytes = b"", *, done: bool = True) -> web.StreamResponse:
        """With this as the last, and, if `done`, OpenAI's closing event behind it."""
        self._end_alarm()
        await self._begin()
        await self._patient(self._response.write_eof(data + (_DONE if done else b"")))
        return self._response

    async def write(self, data: bytes) -> None:
        """Some events, or parts of them. Waits while the client reads too slowly. What is made meanwhile stays in its
        variable; no engine waits.

        Raises SlowReader if it takes too long.
        """
        try:
            await self._begin()
            transport = self._request.transport
            if transport is None or not transport.get_write_buffer_size():  # it takes all of it at once
                await self._response.write(data)
            else:
                await self._patient(self._response.write(data))
        except BaseException:
            self._end_alarm()
            raise

    async def _begin(self) -> None:
        if not self._begun:
            await self._response.prepare(self._request)
            self._begun = True
            self._transport = self._request.transport
            self._chunked = self._response.headers.get(hdrs.TRANSFER_ENCODING) == "chunked"

    async def _patient(self, writing: Coroutine[Any, Any, None]) -> None:
        """Raises SlowReader if the client does not read what is written to it."""
        try:
            async with asyncio.timeout(_READER_SECONDS):
                await writing
        except TimeoutError:
            if self._request.transport is not None:
                self._request.transport.abort()
            raise SlowReader(f"the client has read nothing for {_READER_SECONDS:g} s") from None
