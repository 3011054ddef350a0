"""Connections of clients: how long they may take, and which of them still wait for an answer.

aiohttp waits for headers as long as a client likes. And it takes the end of what a client sends for the end of the
connection, though a client may close its sending half behind a request and read the answer from the other half. To the
server both look the same: it gets the same segment. Only what it sends then tells them apart: the system of a client
that has gone refuses it. So an interim answer is sent, which every client of HTTP/1.1 passes over (RFC 9110, 15.2),
again and again until the answer begins. Where the client has gone, the second one fails, and the connection is lost.
"""

import asyncio
import logging
import sys
from typing import Any

from aiohttp import HttpVersion11, web
from aiohttp.web_protocol import RequestHandler

from gateway.errors import RequestError
from gateway.http.errors import error_answer

log = logging.getLogger("myna.http")

HEADER_SECONDS = 30.0
"""Longest time in seconds from a connection, or from the first byte of a later request, to the end of its headers."""

KEEP_ALIVE_SECONDS = 75.0
"""Longest time in seconds that an idle connection stays open. It exceeds the usual 60 s of reverse proxies, so that the
proxy closes first and never sends a request into a closing connection."""

LINGER_SECONDS = 5.0
"""Longest time in seconds that the rest of a refused body is read and dropped, so that its client sees the answer."""

_INTERIM = b"HTTP/1.1 102 Processing\r\n\r\n"
_FIRST_SECONDS = 0.02
_MOST_SECONDS = 5.0
"""Between two interim answers, in seconds; the time doubles."""
_TURNS = 3
"""Turns of the event loop until the task of a request that was received has begun."""


class _Handler(RequestHandler):
    """aiohttp's protocol, with time limits for headers and answers for half-closed connections."""

    __slots__ = ("_ended", "_header_timer", "_probe_timer")

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._ended = False
        """Whether the end of what the client sends was seen; it is seen again when reading continues."""
        self._header_timer: asyncio.TimerHandle | None = None
        self._probe_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the timer of the headers: a client that sends nothing is cut off as well."""
        super().connection_made(transport)
        self._header_timer = self._loop.call_later(HEADER_SECONDS, self.force_close)

    def data_received(self, data: bytes) -> None:
        """Pass the bytes on; stop the timer when a request is complete, start it when one has only begun."""
        before = self._request_count
        super().data_received(data)
        if self._request_count != before:
            _cancel(self._header_timer)
            self._header_timer = None
        elif data and self._header_timer is None and self._waiter is not None:
            self._header_timer = self._loop.call_later(HEADER_SECONDS, self.force_close)

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Return whether the connection stays open: where there may be an answer to come."""
        if self.transport is None or self.transport.get_extra_info("sslcontext") is not None:
            return None  # TLS closes both halves
        if not self._ended:
            self._ended = True
            self._decide(_TURNS)
        return True

    def _decide(self, turns: int) -> None:
        """Wait for the answer if there is one to come that has not begun; otherwise the client has gone."""
        if self.transport is None or self.transport.is_closing():
            return
        request = self._current_request
        if request is None and turns:  # perhaps it came together with the end, and its task is about to begin
            self._loop.call_soon(self._decide, turns - 1)
            return
        whole = request is not None and request.content.is_eof()  # half a body is no request
        if request is None or not whole or request.version < HttpVersion11 or request.writer.output_size:
            self.transport.close()
            return
        if not self._messages:
            self.close()  # after this answer
        self._probe(_FIRST_SECONDS)

    def _probe(self, seconds: float) -> None:
        request = self._current_request
        if self.transport is None or self.transport.is_closing() or request is None or request.writer.output_size:
            return
        self.transport.write(_INTERIM)
        self._probe_timer = self._loop.call_later(seconds, self._probe, min(2 * seconds, _MOST_SECONDS))

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is not HTTP in OpenAI's shape. aiohttp would log a traceback, as often as a client likes."""
        if status >= 500 or request.writer.output_size:
            return super().handle_error(request, status, exc, message)
        log.debug("%s sent what is not HTTP: %s", request.remote, exc)
        words = " ".join((message or "").split()) or "this is not an HTTP request"
        answer = error_answer(RequestError(status, words, code="invalid_http"))
        answer.force_close()
        return answer

    def log_exception(self, *arguments: Any, **options: Any) -> None:
        """Log a fault of ours. That a client's body cannot be unpacked is none, and its client has been told."""
        if not isinstance(sys.exception(), web.RequestPayloadError):
            super().log_exception(*arguments, **options)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop the timers with the connection."""
        _cancel(self._header_timer)
        _cancel(self._probe_timer)
        self._header_timer = self._probe_timer = None
        super().connection_lost(exc)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


class _Server(web.Server):
    def __call__(self) -> RequestHandler:
        return _Handler(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """Runs an application whose connections have these limits, and cancels handlers of clients that have gone."""

    def __init__(self, app: web.Application, *, shutdown_timeout: float) -> None:
        """`shutdown_timeout`: seconds that running handlers have at the end."""
        super().__init__(
            app,
            handler_cancellation=True,
            access_log=None,
            shutdown_timeout=shutdown_timeout,
            keepalive_timeout=KEEP_ALIVE_SECONDS,
            lingering_time=LINGER_SECONDS,
        )

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        server.__class__ = _Server  # aiohttp has no option for the protocol's class
        return server
