"""Write server-sent events."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from aiohttp import hdrs, web

from gateway.http.anthropic import request_id_headers
from gateway.http.rate_headers import add_limit_headers
from gateway.http.slow_client import STREAM_SECONDS, wait_written
from gateway.http.warnings import warning_headers
from gateway.runtime.json_codec import encode_json

REQUEST_ID = web.RequestKey("request_id", str)
"""Id of a request, sent as `x-request-id` in its answer."""

HEARTBEAT_SECONDS = 15.0
"""Longest time without an event or a comment on a stream, in seconds."""

_MAX_DIRECT = 32 << 10
"""Number of bytes that a transport with an empty buffer accepts without pausing its writer."""

_Result = TypeVar("_Result")


_DONE = b"data: [DONE]\n\n"


def unnamed_events(*values: Any) -> bytes:
    """Return events with JSON data and without a name, as in OpenAI's API."""
    return b"".join([b"data: " + encode_json(value) + b"\n\n" for value in values])


def named_event(name: str, value: Any, id: int | None = None) -> bytes:
    """Return one event with a name, and with an id from which a client can resume."""
    head = f"event: {name}\n" if id is None else f"id: {id}\nevent: {name}\n"
    return head.encode() + b"data: " + encode_json(value) + b"\n\n"


HEARTBEAT = b": waiting\n\n"
"""Comment that keeps a stream alive."""
HEARTBEAT_WITH_IDS = b": waiting\n"
"""Comment that keeps a stream alive whose events have ids.

After an event with an id, OpenAI's Python client takes each blank line for another event, and cannot parse its empty
data. So the comment has none; the next event ends it.
"""


class EventStream:
    """Writer of events to one client. It does not notice a disconnect; the task that handles the request does."""

    def __init__(self, request: web.Request, heartbeat: Callable[[], bytes] = lambda: HEARTBEAT) -> None:
        """`heartbeat`: returns the events that are written after a silence."""
        self._request = request
        self._heartbeat = heartbeat
        self._reader: asyncio.Task[Any] | None = None
        """Task that waits for the next event."""
        self._due = 0.0
        """Time of the next heartbeat comment, by the event loop's clock."""
        self._timer: asyncio.TimerHandle | None = None
        self._timer_fired = False
        """Whether the timer has just cancelled a wait."""
        self._has_started = False
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        """Transport of the connection; None until the headers are sent."""
        self._chunked = False
        self._response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-cache",
                "X-Accel-Buffering": "no",
                **request_id_headers(request, request[REQUEST_ID]),
                **warning_headers(request),
            }
        )

    @property
    def has_started(self) -> bool:
        """Return whether the headers are sent, so that errors can only be reported as events."""
        return self._has_started

    @property
    def is_empty(self) -> bool:
        """Return whether the answer has no events: that to a HEAD request has only headers. Then call only `end`."""
        return self._request.method == hdrs.METH_HEAD

    def try_write(self, data: bytes) -> bool:
        """Write the data if that needs no waiting, and return whether it was written.

        The data is not written if the headers are not sent yet, if the client reads slowly, or if the data is long.
        """
        # This does the same as aiohttp's response at less cost: a streaming server runs it for every token.
        transport = self._transport
        if transport is None or transport.is_closing() or transport.get_write_buffer_size() or len(data) > _MAX_DIRECT:
            return False
        transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
        self._due = max(self._due, self._loop.time() + HEARTBEAT_SECONDS)
        return True

    async def with_heartbeats(
        self,
        wait: Callable[[], Awaitable[_Result]],
        first: float = HEARTBEAT_SECONDS,
        opening: Callable[[], bytes] | None = None,
    ) -> _Result:
        """Return the result of `wait`, and send heartbeats until then.

        The heartbeats cancel `wait` and call it again. `first`: longest silence before the headers are sent, in
        seconds. `opening`: returns events to send with the headers.
        """
        # asyncio.timeout would start and stop a timer for every token
        self._reader = reader = asyncio.current_task()
        assert reader is not None
        while True:
            self._start_timer(HEARTBEAT_SECONDS if self.has_started else first)
            try:
                return await wait()
            except BaseException as error:
                if not isinstance(error, asyncio.CancelledError) or not self._timer_fired or reader.uncancel():
                    self._stop_timer()  # the timer did not end the wait, or another cancellation came with it
                    raise
                self._timer_fired = False
            finally:
                self._due = math.inf
            events = b"" if opening is None or self.has_started else opening()
            await self.write(events or self._heartbeat())

    def _start_timer(self, seconds: float) -> None:
        loop = self._loop
        self._due = loop.time() + seconds
        if self._timer is None or self._timer.when() > self._due:
            self._stop_timer()
            self._timer = loop.call_at(self._due, self._on_timer)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self) -> None:
        """Cancel the wait if it has lasted long enough; otherwise start the timer for the remaining time."""
        loop, self._timer = self._loop, None
        if self._due == math.inf:  # no task waits
            return
        if loop.time() < self._due:
            self._timer = loop.call_at(self._due, self._on_timer)
        elif self._reader is not None:
            self._timer_fired = True
            self._reader.cancel()

    async def end(self, data: bytes = b"", *, done: bool = True) -> web.StreamResponse:
        """Write the last events and, if `done`, OpenAI's closing event `[DONE]`; end the response."""
        self._stop_timer()
        await self._send_headers()
        data = b"" if self.is_empty else data + (_DONE if done else b"")
        await wait_written(self._request, self._response.write_eof(data), STREAM_SECONDS)
        return self._response

    async def write(self, data: bytes) -> None:
        """Write events, or parts of them. Wait while the client reads too slowly.

        The engine does not wait: text that it generates meanwhile stays in the variable. Raises SlowClient if the
        client reads nothing for too long.
        """
        try:
            await self._send_headers()
            transport = self._request.transport
            if transport is None or not transport.get_write_buffer_size():  # the write will not wait
                await self._response.write(data)
            else:
                await wait_written(self._request, self._response.write(data), STREAM_SECONDS)
        except BaseException:
            self._stop_timer()
            raise

    async def _send_headers(self) -> None:
        if not self._has_started:
            add_limit_headers(self._request, self._response.headers)
            await self._response.prepare(self._request)
            self._has_started = True
            self._transport = self._request.transport
            self._chunked = self._response.headers.get(hdrs.TRANSFER_ENCODING) == "chunked"
