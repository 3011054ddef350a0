"""Limit the time of connections, and keep half-closed connections open for their answer.

aiohttp has no time limit for headers. It also treats a closed sending half (FIN) as a disconnect, although the client
may still read the answer. The server receives the same segment in both cases. The two differ only when the server
sends: the operating system of a disconnected client rejects the data. So the server sends an interim response, which
every HTTP/1.1 client ignores (RFC 9110, 15.2), and repeats it until the answer begins. If the client has disconnected,
the second one fails, and the connection is lost.
"""

import asyncio
import logging
import resource
import sys
from typing import Any

from aiohttp import HttpVersion11, web, web_response
from aiohttp.web_protocol import RequestHandler

from gateway.errors import RequestError
from gateway.http.middleware.errors import error_answer

log = logging.getLogger("myna.http")

# the header `Server`, which clients without an API key get as well, would have the versions of Python and aiohttp
web_response.SERVER_SOFTWARE = "myna"  # type: ignore[attr-defined]

HEADER_SECONDS = 30.0
"""Longest time in seconds from a connection, or from the first byte of a later request, to the end of its headers."""

KEEP_ALIVE_SECONDS = 75.0
"""Longest time in seconds that an idle connection stays open. It exceeds the usual 60 s of reverse proxies, so that the
proxy closes first and never sends a request into a closing connection."""

LINGER_SECONDS = 5.0
"""Longest time in seconds that the rest of a refused body is read and dropped, so that its client sees the answer."""

RESERVED_FILES = 512
"""Number of open files reserved for the journal, engines and other servers, if the system allows enough files."""

_INTERIM = b"HTTP/1.1 102 Processing\r\n\r\n"
_FIRST_PROBE_SECONDS = 0.02
_MAX_PROBE_SECONDS = 5.0
"""Longest interval between two interim responses to a half-closed connection, in seconds. The interval starts at
`_FIRST_PROBE_SECONDS` and doubles."""
_TURNS = 3
"""Number of event loop turns within which the task of a received request begins."""


class _Handler(RequestHandler):
    """aiohttp's protocol, with time limits for headers and answers for half-closed connections."""

    __slots__ = ("_ended", "_header_timer", "_probe_timer")

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._ended = False
        """Whether the client's end of input was handled; asyncio reports it again when reading continues."""
        self._header_timer: asyncio.TimerHandle | None = None
        self._probe_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the header timer. A client that sends nothing is disconnected as well."""
        super().connection_made(transport)
        self._header_timer = self._loop.call_later(HEADER_SECONDS, self.force_close)

    def data_received(self, data: bytes) -> None:
        """Pass the bytes to aiohttp. Stop the header timer when headers are complete, start it when headers begin."""
        before = self._request_count
        super().data_received(data)
        if self._request_count != before:
            _cancel(self._header_timer)
            self._header_timer = None
        elif data and self._header_timer is None and self._waiter is not None:
            self._header_timer = self._loop.call_later(HEADER_SECONDS, self.force_close)

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Handle the end of the client's input. Return whether the connection may stay open."""
        if self.transport is None or self.transport.get_extra_info("sslcontext") is not None:
            return None  # TLS closes both halves
        if not self._ended:
            self._ended = True
            self._decide(_TURNS)
        return True

    def _decide(self, turns: int) -> None:
        """Keep or close a connection whose client has closed its sending half.

        Keep it if the client sent a complete request, and the answer to that has not begun. Close it otherwise.
        `turns`: number of event loop turns to wait for a request that arrived together with the close: its task may not
        have begun.
        """
        if self.transport is None or self.transport.is_closing():
            return
        request = self._current_request
        if request is None and turns:  # a request may have arrived together with the end; its task begins soon
            self._loop.call_soon(self._decide, turns - 1)
            return
        is_complete = request is not None and request.content.is_eof()  # half a body is no request
        if request is None or not is_complete or request.version < HttpVersion11 or request.writer.output_size:
            self.transport.close()
            return
        if not self._messages:
            self.close()  # after this answer
        self._probe(_FIRST_PROBE_SECONDS)

    def _probe(self, seconds: float) -> None:
        request = self._current_request
        if self.transport is None or self.transport.is_closing() or request is None or request.writer.output_size:
            return
        self.transport.write(_INTERIM)
        self._probe_timer = self._loop.call_later(seconds, self._probe, min(2 * seconds, _MAX_PROBE_SECONDS))

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer invalid HTTP with an error in the format of the request's API.

        aiohttp would log a traceback each time, so a client could flood the log.
        """
        if status >= 500 or request.writer.output_size:
            return super().handle_error(request, status, exc, message)
        log.debug("%s sent invalid HTTP: %s", request.remote, exc)
        text = " ".join((message or "").split()) or "invalid HTTP request"
        answer = error_answer(RequestError(status, text, code="invalid_http"), request)
        answer.force_close()
        return answer

    def log_exception(self, *arguments: Any, **options: Any) -> None:
        """Log an exception, unless a client's body could not be decoded: the client has got an error for that."""
        if not isinstance(sys.exception(), web.RequestPayloadError):
            super().log_exception(*arguments, **options)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop the timers."""
        _cancel(self._header_timer)
        _cancel(self._probe_timer)
        self._header_timer = self._probe_timer = None
        super().connection_lost(exc)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


class _Server(web.Server):
    max_connections = 0
    """Maximum number of connections. More of them would use up the open files that the journal and engines need."""

    def __call__(self) -> RequestHandler:
        return _Handler(self, loop=self._loop, **self._kwargs)

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        """Add the connection. If there are too many, close the oldest connection that is idle, or else this one."""
        super().connection_made(handler, transport)
        if len(self._connections) <= self.max_connections:
            return
        idle = (known for known in self._connections if known is not handler and known._current_request is None)
        log.warning("%d connections are open, more than the maximum: closing one", len(self._connections))
        next(idle, handler).force_close()


class Runner(web.AppRunner):
    """Runner of an application with these limits. It cancels the handlers of clients that disconnect."""

    def __init__(self, app: web.Application, *, shutdown_timeout: float) -> None:
        """`shutdown_timeout`: time that running handlers have at the end, in seconds."""
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
        assert isinstance(server, _Server)
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        server.max_connections = max(files // 2, files - RESERVED_FILES)
        return server
