"""Time limits of connections: how long request headers may take to arrive, and how long an idle connection stays."""

import asyncio

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

HEADER_SECONDS = 30.0
"""Longest time in seconds from a connection, or from the first byte of a later request, to the end of its headers."""

KEEP_ALIVE_SECONDS = 75.0
"""Longest time in seconds that an idle connection stays open. It exceeds the usual 60 s of reverse proxies, so that the
proxy closes first and never sends a request into a closing connection."""


class _TimedHandler(RequestHandler):
    """aiohttp's protocol, which closes connections whose headers take too long."""

    __slots__ = ("_header_timer",)

    _header_timer: asyncio.TimerHandle | None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the timer: a client that sends nothing is cut off as well."""
        super().connection_made(transport)
        self._header_timer = self._loop.call_later(HEADER_SECONDS, self.force_close)

    def data_received(self, data: bytes) -> None:
        """Pass the bytes on; stop the timer when a request is complete, start it when one has only begun."""
        before = self._request_count
        super().data_received(data)
        if self._request_count != before:
            self._stop_timer()
        elif data and self._header_timer is None and self._waiter is not None:
            self._header_timer = self._loop.call_later(HEADER_SECONDS, self.force_close)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop the timer with the connection."""
        self._stop_timer()
        super().connection_lost(exc)

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None


class _TimedServer(web.Server):
    def __call__(self) -> RequestHandler:
        return _TimedHandler(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """Runs an application whose connections have time limits."""

    def __init__(self, app: web.Application, *, shutdown_timeout: float) -> None:
        """`shutdown_timeout`: seconds that running handlers have at the end."""
        super().__init__(
            app,
            handler_cancellation=True,
            access_log=None,
            shutdown_timeout=shutdown_timeout,
            keepalive_timeout=KEEP_ALIVE_SECONDS,
        )

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        server.__class__ = _TimedServer  # aiohttp has no option for the protocol's class
        return server
