"""A connection: its transport, its parser, and the reasons why it pauses."""

import asyncio
import time
from collections.abc import AsyncIterable
from typing import TYPE_CHECKING, cast

import httptools

from gateway.http_client.errors import ConnectionBroken
from gateway.http_client.response import Response

if TYPE_CHECKING:
    from gateway.http_client.pool import ConnectionPool

_HEAD_BYTES = 64 << 10
"""Maximum size of a response's head, and of its trailers, in bytes."""
_TURN_SECONDS = 0.005
"""Time that data may take the event loop before its connection rests, in seconds. Data of an honest server takes a
hundredth of that."""


class Connection(asyncio.Protocol):
    """A connection, with one response at a time. It also receives the callbacks of its parser."""

    def __init__(self, pool: "ConnectionPool") -> None:
        self.idle_since = 0.0
        self.last_activity = time.monotonic()
        """Time of the last received data, or of the last request."""
        self.response: Response | None = None
        """The current response; None if the connection is idle."""
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._head: dict[str, str] = {}
        self._reason = ""
        self._head_bytes = 0
        self._trailer_bytes = 0
        self._has_surplus = False
        """Whether data has arrived after a response."""
        self._until_closed = False
        """Whether the body ends with the connection."""
        self.is_paused = False
        """Whether the server is paused, because the body is not read."""
        self._is_resting = False
        """Whether the server is paused, because its data took the event loop too long."""
        self._writable: asyncio.Future[None] | None = None
        """Set while the server reads slower than the request is sent; done once it has caught up."""
        self._has_whole_request = True
        """Whether the current request was sent completely."""

    @property
    def is_open(self) -> bool:
        """Whether a request can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def request(self, request: bytes, timeout: float) -> Response:
        """Send a request. Return its response, which has not arrived yet."""
        assert self._transport is not None
        self.last_activity = time.monotonic()
        self.response = response = Response(self, timeout)
        self._head_bytes = self._trailer_bytes = 0
        self._transport.write(request)
        return response

    async def send_body(self, body: AsyncIterable[bytes]) -> None:
        """Send the body of the current request in chunks, as fast as the server reads them.

        The connection is not used again if this is cancelled or fails. Raises the errors of `body`.
        """
        self._has_whole_request = False
        async for chunk in body:
            if chunk:
                await self._write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        await self._write(b"0\r\n\r\n")
        self._has_whole_request = True

    async def _write(self, data: bytes) -> None:
        if self._writable is not None:
            await asyncio.shield(self._writable)
        if not self.is_open:
            raise ConnectionBroken("the server closed the connection")
        assert self._transport is not None
        self.last_activity = time.monotonic()
        self._transport.write(data)

    def end(self, error: ConnectionBroken | None) -> None:
        """Close the connection immediately. The response fails with `error`."""
        if self._transport is not None:
            self._transport.abort()
        response, self.response = self.response, None
        self._pool.remove(self)
        if response is not None and error is not None:
            response.fail(error)

    def pause(self) -> None:
        """Stop reading, because the body is not read."""
        self.is_paused = True
        self._apply_pauses()

    def resume(self) -> None:
        """Continue to read."""
        self.last_activity = time.monotonic()
        if self.is_paused:
            self.is_paused = False
            self._apply_pauses()

    def _apply_pauses(self) -> None:
        if self.is_open:
            assert self._transport is not None
            reads = not (self.is_paused or self._is_resting)
            if reads and not self._transport.is_reading():
                self._transport.resume_reading()
            elif not reads and self._transport.is_reading():
                self._transport.pause_reading()

    def _rest(self, seconds: float) -> None:
        """Pause for as long as the last data took the event loop, times the number of connections that rest."""
        self._is_resting = True
        resting_count = self._pool.begin_rest()
        self._apply_pauses()
        asyncio.get_running_loop().call_later(seconds * resting_count, self._end_rest)

    def _end_rest(self) -> None:
        self._pool.end_rest()
        self._is_resting = False
        self._apply_pauses()

    @property
    def has_response(self) -> bool:
        """Whether any data of the last requested response has arrived."""
        return self._head_bytes > 0

    # callbacks of the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport. See asyncio.Protocol."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's class is one without being declared so

    def data_received(self, data: bytes) -> None:
        """Parse data. See asyncio.Protocol."""
        response = self.response
        if response is None:  # data without a request
            self.end(None)
            return
        self.last_activity = began = time.monotonic()
        if not response.status:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade, ValueError) as error:
            self.end(ConnectionBroken(f"invalid HTTP response: {error}"))
            return
        if not response.status and self._head_bytes > _HEAD_BYTES:
            self.end(ConnectionBroken(f"the head of the response has more than {_HEAD_BYTES} bytes"))
            return
        if self._has_surplus:
            self.end(None)
        response.notify()
        spent = time.monotonic() - began
        if spent > _TURN_SECONDS and self.is_open and not self._is_resting:
            self._rest(spent)

    def pause_writing(self) -> None:
        """Pause the sending of a body. See asyncio.Protocol."""
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        """Continue to send a body. See asyncio.Protocol."""
        writable, self._writable = self._writable, None
        if writable is not None:
            writable.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        """End the response. See asyncio.Protocol."""
        self.resume_writing()
        response, self.response = self.response, None
        self._pool.remove(self)
        if response is None:
            return
        if self._until_closed and response.status and error is None:
            response.ended = True
            response.notify()
        else:
            response.fail(ConnectionBroken("the server closed the connection" if error is None else f"{error}"))

    # callbacks of the parser

    def on_message_begin(self) -> None:
        """Reset the head. See httptools."""
        self._head, self._reason = {}, ""
        self._has_surplus |= self.response is None

    def on_status(self, reason: bytes) -> None:
        """Append to the reason phrase. See httptools."""
        self._reason += reason.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Store a header. See httptools."""
        if self.response is not None and self.response.status:  # a trailer
            self._trailer_bytes += len(name) + len(value)
            if self._trailer_bytes > _HEAD_BYTES:
                raise ValueError(f"the trailers have more than {_HEAD_BYTES} bytes")
            return
        self._head[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Store the head in the response. See httptools."""
        status = self._parser.get_status_code()
        response = self.response
        if response is None or status < 200:  # an informational response, which another one follows
            return
        head = self._head
        self._until_closed = "content-length" not in head and "transfer-encoding" not in head
        response.reason, response.headers = self._reason, head
        response.status = status

    def on_body(self, body: bytes) -> None:
        """Append to the body. See httptools."""
        if self.response is not None:
            self.response.append_body(body)

    def on_message_complete(self) -> None:
        """End the response; keep the connection if the server allows it. See httptools."""
        response = self.response
        if response is None or not response.status:
            return
        response.ended = True
        self.response = None
        if self._parser.should_keep_alive() and self._has_whole_request:
            self.resume()
            self._pool.add_idle(self)
        else:
            self.end(None)
