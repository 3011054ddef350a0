"""Pool of the connections to one server."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterable, Awaitable, Coroutine, Mapping
from itertools import takewhile
from typing import Any
from urllib.parse import urlsplit

from gateway.http_client.connection import Connection
from gateway.http_client.connector import Connector
from gateway.http_client.errors import ConnectionBroken, ResponseTimeout
from gateway.http_client.request_encoder import NO_HEADERS, RequestEncoder
from gateway.http_client.response import Response

_CHECKS_PER_TIMEOUT = 8
"""Number of checks for silence within the timeout of a server."""
_MAX_CHECK_SECONDS = 1.0
"""Maximum time between two checks for silence, in seconds."""


class ConnectionPool:
    """Owner of the connections to one server."""

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        *,
        tls: ssl.SSLContext | None = None,
        timeout: float = 300.0,
        keep_alive: float = 4.0,
    ) -> None:
        """`url`: the server's base URL. `headers`: headers of every request. `tls`: trusted certificates, by default
        the system's. `timeout`: seconds of silence after which a response is aborted. `keep_alive`: seconds for which
        idle connections are kept."""
        base = urlsplit(url)
        is_secure = base.scheme == "https"
        host = base.hostname or ""
        if not host.isascii():
            host = host.encode("idna").decode()
        self._connector = Connector(
            host,
            base.port or (443 if is_secure else 80),
            (tls or ssl.create_default_context()) if is_secure else None,
        )
        self._encoder = RequestEncoder(base, host, headers)
        self._timeout = timeout
        self._keep_alive = keep_alive
        self._resting_count = 0
        """Number of connections that rest."""
        self._idle: dict[Connection, None] = {}
        """Idle connections, the longest idle one first."""
        self._busy: set[Connection] = set()
        self._timer: asyncio.TimerHandle | None = None

    def post(self, path: str, content: bytes, headers: Mapping[str, str] = NO_HEADERS) -> Awaitable[Response]:
        """Return the response to a POST request. See `request`."""
        return self.request("POST", path, content, headers)

    async def send(
        self,
        method: str,
        path: str,
        body: bytes | AsyncIterable[bytes],
        content_type: str,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> Response:
        """Send a request whose body is not JSON, or arrives in pieces. Return its response once the head has arrived.
        `headers`: as in `request`.

        If the server answers before it has read the whole body, the rest is not sent. Raises ConnectError,
        ConnectionBroken, and the errors of `body`.
        """
        connection = self._pop_idle() if isinstance(body, bytes) else None
        if connection is not None and isinstance(body, bytes):
            request = self._encoder.encode(method, path, body, content_type, headers)
            try:
                return await self._begin(connection, request)
            except ConnectionBroken as error:  # as in `request`
                if connection.has_response or isinstance(error, ResponseTimeout):
                    raise
        connection = await self._connector.connect(self._build_connection)
        if isinstance(body, bytes):
            return await self._begin(connection, self._encoder.encode(method, path, body, content_type, headers))
        return await self._begin(connection, self._encoder.encode(method, path, None, content_type, headers), body)

    async def request(
        self, method: str, path: str, content: bytes = b"", headers: Mapping[str, str] = NO_HEADERS
    ) -> Response:
        """Send a request. Return its response once the head has arrived. `headers`: further headers, in ASCII without
        control characters. Raises ConnectError or ConnectionBroken."""
        request = self._encoder.encode(method, path, content, headers=headers)
        if (idle := self._pop_idle()) is not None:
            try:
                return await self._begin(idle, request)
            except ConnectionBroken as error:
                # most likely the server has just closed it, and perhaps all other idle ones: use a new connection
                if idle.has_response or isinstance(error, ResponseTimeout):
                    raise
        return await self._begin(await self._connector.connect(self._build_connection), request)

    async def _begin(
        self, connection: Connection, request: bytes, body: AsyncIterable[bytes] | None = None
    ) -> Response:
        """Send the head of a request, and its body. Return the response once its head has arrived."""
        self._busy.add(connection)
        self._schedule_check()
        response = connection.request(request, self._timeout)
        try:
            if body is None:
                await response.wait_for_head()
            else:
                await _send_until_head(response, connection.send_body(body))
        except BaseException:
            response.close()
            raise
        return response

    def _build_connection(self) -> Connection:
        return Connection(self)

    def _pop_idle(self) -> Connection | None:
        """Remove the most recently used idle connection from the pool and return it; None if there is none."""
        now = time.monotonic()
        while self._idle:
            connection, _ = self._idle.popitem()
            if connection.is_open and now - connection.idle_since < self._keep_alive:
                return connection
            connection.end(None)
        return None

    def add_idle(self, connection: Connection) -> None:
        """Keep a connection that has become idle."""
        self._busy.discard(connection)
        connection.idle_since = time.monotonic()
        self._idle[connection] = None
        self._schedule_check()

    def remove(self, connection: Connection) -> None:
        """Remove a connection that has ended."""
        self._busy.discard(connection)
        self._idle.pop(connection, None)

    def begin_rest(self) -> int:
        """Count a connection that begins to rest. Return the number of those that rest now."""
        self._resting_count += 1
        return self._resting_count

    def end_rest(self) -> None:
        """Count a connection that continues."""
        self._resting_count -= 1

    def _schedule_check(self) -> None:
        if self._timer is None:
            pause = min(_MAX_CHECK_SECONDS, self._timeout / _CHECKS_PER_TIMEOUT)
            self._timer = asyncio.get_running_loop().call_later(pause, self._check)

    def _check(self) -> None:
        """Close silent and idle connections. One timer does this for all connections of the pool."""
        self._timer = None
        now = time.monotonic()
        for connection in [*self._busy]:
            response = connection.response
            silent = now - connection.last_activity
            if response is not None and not connection.is_paused and silent > response.timeout:
                connection.end(ResponseTimeout(f"silent for {response.timeout:g} s"))
            elif response is not None and now > response.deadline:
                connection.end(ConnectionBroken("the end of the response did not arrive in time"))
        for connection in list(takewhile(lambda idle: now - idle.idle_since >= self._keep_alive, self._idle)):
            connection.end(None)
        if self._busy or self._idle:
            self._schedule_check()

    async def close(self) -> None:
        """Close all connections."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for connection in [*self._idle, *self._busy]:
            connection.end(ConnectionBroken("the gateway is shutting down"))
        await asyncio.sleep(0)  # lets the transports close


async def _send_until_head(response: Response, sending: Coroutine[Any, Any, None]) -> None:
    """Wait for the head of the response while the body is sent. Raises the errors of both."""
    arriving = asyncio.ensure_future(response.wait_for_head())
    sent = asyncio.ensure_future(sending)
    try:
        await asyncio.wait((arriving, sent), return_when=asyncio.FIRST_COMPLETED)
        if not arriving.done() and sent.exception() is not None:
            sent.result()
        await arriving
    finally:
        for task in (arriving, sent):
            task.cancel()
        await asyncio.gather(arriving, sent, return_exceptions=True)
