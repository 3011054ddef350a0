"""HTTP/1.1 client for one server: a pool of connections, and responses that are streamed.

It replaces aiohttp's client. That took a fourth of a plain request's time here, for cookies, redirects, payloads and
traces that the gateway does not need.
"""

import asyncio
import base64
import math
import os
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import takewhile
from typing import cast
from urllib.parse import quote, unquote, urlsplit

import aiohappyeyeballs
import httptools

_HEAD_BYTES = 64 << 10
"""Maximum size of a response's head, and of its trailers, in bytes."""
_BODY_BYTES = 64 << 20
"""Maximum size of a body that is read as a whole, in bytes."""
_MAX_UNREAD_BYTES = 256 << 10
"""Size of the unread body from which the server is paused, in bytes."""
_ADDRESS_SECONDS = 60.0
"""Time for which the addresses of a host name are cached, in seconds."""
_CONNECT_SECONDS = 10.0
_TURN_SECONDS = 0.005
"""Time that data may take the event loop before its connection rests, in seconds. Data of an honest server takes a
hundredth of that."""
_CHECKS_PER_TIMEOUT = 8
"""Number of checks for silence within the timeout of a server."""
_MAX_CHECK_SECONDS = 1.0
_DEFAULT_HEADERS = {"User-Agent": "myna", "Accept": "*/*"}
"""Headers of every request. Some proxies accept no requests without them."""


class ConnectError(Exception):
    """No connection could be made."""


class ConnectionBroken(Exception):
    """The connection broke off, or the data was not valid HTTP."""


class ResponseTimeout(ConnectionBroken):
    """The server was silent for too long."""


class Response:
    """A response whose head has arrived. The caller closes it.

    `headers`: by name in lower case. `ended`: the body is complete, and all of it was returned except for what the next
    `next_chunk` returns.
    """

    def __init__(self, connection: "_Connection", timeout: float) -> None:
        self.status = 0
        self.reason = ""
        self.headers: dict[str, str] = {}
        self.ended = False
        self.timeout = timeout
        """Maximum silence of the server from now on, in seconds."""
        self.deadline = math.inf
        """Time of the monotonic clock at which the response is aborted, whatever arrives."""
        self._connection = connection
        self._body: list[bytes] = []
        self._unread = 0
        self._error: ConnectionBroken | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._callback: Callable[[bytes], None] | None = None
        self._callback_error: Exception | None = None
        """Error that the callback raised."""

    async def next_chunk(self) -> bytes:
        """Wait for a chunk of the body, and return it; return nothing after the last one. Raises ConnectionBroken
        behind all that arrived."""
        while not self._body:
            if self._error is not None:
                raise self._copy_error(self._error)
            if self.ended:
                return b""
            await self._wait_for_change()
        return self._take_body()

    def _take_body(self) -> bytes:
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        if self._unread > _MAX_UNREAD_BYTES:
            self._connection.resume()
        self._unread = 0
        return body

    async def stream_to(self, callback: Callable[[bytes], None]) -> None:
        """Call `callback` with each chunk of the body where it arrives, and return after the last one.

        Raises ConnectionBroken behind all that arrived, and what `callback` raises.
        """
        self._callback = callback
        try:
            self._deliver()
            while self._callback_error is None and self._error is None and not self.ended:
                await self._wait_for_change()
        finally:
            self._callback = None
        if self._callback_error is not None:
            try:
                raise self._callback_error
            finally:
                self._callback_error = None  # its traceback refers to this response: a reference cycle
        if self._error is not None:
            raise self._copy_error(self._error)

    @staticmethod
    def _copy_error(error: ConnectionBroken) -> ConnectionBroken:
        """Return a copy of the error. The traceback of a raised error refers to the caller, and so to this response."""
        return type(error)(*error.args)

    def _deliver(self) -> None:
        if self._body and self._callback is not None and self._callback_error is None:
            try:
                self._callback(self._take_body())
            except Exception as error:  # an error of the caller must not reach the transport
                self._callback_error = error

    async def read(self, maximum: int = _BODY_BYTES, *, cut: bool = False) -> bytes:
        """Return the rest of the body. Raises ConnectionBroken if it has more than `maximum` bytes; with `cut`, return
        its first bytes instead."""
        body = bytearray()
        while chunk := await self.next_chunk():
            body += chunk
            if len(body) > maximum:
                if cut:
                    break
                raise ConnectionBroken(f"the response has more than {maximum} bytes")
        return bytes(body[:maximum])

    def close(self) -> None:
        """End the response. Its connection is kept if the body was complete."""
        if not self.ended:
            self._connection.end(ConnectionBroken("the gateway closed it"))

    async def wait_for_head(self) -> None:
        """Wait for the head. Raises ConnectionBroken."""
        while not self.status:
            if self._error is not None:
                raise self._copy_error(self._error)
            await self._wait_for_change()

    async def _wait_for_change(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    # called by the connection

    def append_body(self, body: bytes) -> None:
        """Append a chunk of the body. `notify` announces it."""
        self._body.append(body)
        self._unread += len(body)
        if self._unread > _MAX_UNREAD_BYTES:
            self._connection.pause()

    def notify(self) -> None:
        """Announce new data, or the end."""
        if self._callback is not None:
            self._deliver()
            if self._callback_error is None and self._error is None and not self.ended:
                return
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, error: ConnectionBroken) -> None:
        """End the response with an error."""
        self._error = error
        self.notify()


class _Connection(asyncio.Protocol):
    """A connection, with one response at a time. It also receives the callbacks of its parser."""

    def __init__(self, owner: "ConnectionPool") -> None:
        self.idle_since = 0.0
        self.last_activity = time.monotonic()
        """Time of the last received data, or of the last request."""
        self.response: Response | None = None
        """The current response; None if the connection is idle."""
        self._pool = owner
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._head: dict[str, str] = {}
        self._reason = ""
        self._head_bytes = 0
        self._trailer_bytes = 0
        self._has_surplus = False
        """Whether data has arrived behind a response."""
        self._until_closed = False
        """Whether the body ends with the connection."""
        self.is_paused = False
        """Whether the server is paused, because the body is not read."""
        self._is_resting = False
        """Whether the server is paused, because its data took the event loop too long."""

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

    def end(self, error: ConnectionBroken | None) -> None:
        """Close the connection at once. The response fails with `error`."""
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
        self._pool.resting_count += 1
        self._apply_pauses()
        asyncio.get_running_loop().call_later(seconds * self._pool.resting_count, self._end_rest)

    def _end_rest(self) -> None:
        self._pool.resting_count -= 1
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

    def connection_lost(self, error: Exception | None) -> None:
        """End the response. See asyncio.Protocol."""
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
        if self._parser.should_keep_alive():
            self.resume()
            self._pool.add_idle(self)
        else:
            self.end(None)


def _describe(error: OSError) -> str:
    """Return the message of an error without asyncio's own prefix."""
    if error.errno is None or isinstance(error, socket.gaierror | ssl.SSLError):
        return error.strerror or str(error)
    return os.strerror(error.errno)


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
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        host = parts.hostname or ""
        self._host = host if host.isascii() else host.encode("idna").decode()
        self._port = parts.port or (443 if secure else 80)
        self._tls = (tls or ssl.create_default_context()) if secure else None
        self._prefix = quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~")
        address = f"[{self._host}]" if ":" in self._host else self._host
        own_headers = {"Host": address if parts.port is None else f"{address}:{parts.port}", **_DEFAULT_HEADERS}
        if parts.username is not None:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            own_headers["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
        for name, value in {**own_headers, **headers}.items():
            if not value.isascii() or not value.isprintable():
                raise ValueError(f"the header {name} contains characters that are not allowed")
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in {**own_headers, **headers}.items())
        self._timeout = timeout
        self._keep_alive = keep_alive
        self._heads: dict[tuple[str, str], bytes] = {}
        self.resting_count = 0
        """Number of connections that rest."""
        self._idle: dict[_Connection, None] = {}
        """Idle connections, the longest idle one first."""
        self._busy: set[_Connection] = set()
        self._addresses: tuple[float, Sequence[aiohappyeyeballs.AddrInfoType]] = (0.0, ())
        self._timer: asyncio.TimerHandle | None = None

    def post(self, path: str, content: bytes) -> Awaitable[Response]:
        """Return the response to a POST request. See `request`."""
        return self.request("POST", path, content)

    async def request(self, method: str, path: str, content: bytes = b"") -> Response:
        """Send a request. Return its response once the head has arrived. Raises ConnectError or ConnectionBroken."""
        if (idle := self._pop_idle()) is not None:
            try:
                return await self._send(idle, method, path, content)
            except ConnectionBroken as error:
                # most likely the server has just closed it, and perhaps all other idle ones: use a new connection
                if idle.has_response or isinstance(error, ResponseTimeout):
                    raise
        return await self._send(await self._connect(), method, path, content)

    async def _send(self, connection: _Connection, method: str, path: str, content: bytes) -> Response:
        self._busy.add(connection)
        self._schedule_check()
        head, end = self._request_head(method, path), b"\r\n"
        if content:
            end = b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(content)
        response = connection.request(head + end + content, self._timeout)
        try:
            await response.wait_for_head()
        except BaseException:
            response.close()
            raise
        return response

    def _request_head(self, method: str, path: str) -> bytes:
        head = self._heads.get((method, path))
        if head is None:
            head = f"{method} {self._prefix}{path} HTTP/1.1\r\n{self._headers}".encode()
            self._heads[method, path] = head
        return head

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                sock = await aiohappyeyeballs.start_connection(await self._resolve(), happy_eyeballs_delay=0.25)
                try:
                    _, connection = await loop.create_connection(
                        lambda: _Connection(self),
                        sock=sock,
                        ssl=self._tls,
                        server_hostname=None if self._tls is None else self._host,
                    )
                except BaseException:
                    sock.close()
                    raise
        except TimeoutError as error:
            raise ConnectError(f"it did not answer within {_CONNECT_SECONDS:g} s") from error
        except OSError as error:  # includes errors of TLS
            raise ConnectError(_describe(error)) from error
        return connection

    async def _resolve(self) -> Sequence[aiohappyeyeballs.AddrInfoType]:
        """Return the addresses of the host. Raises OSError."""
        deadline, addresses = self._addresses
        now = time.monotonic()
        if now >= deadline:
            loop = asyncio.get_running_loop()
            addresses = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
            self._addresses = now + _ADDRESS_SECONDS, addresses
        return addresses

    # pool

    def _pop_idle(self) -> _Connection | None:
        """Return an idle connection, the last used one first; None if there is none."""
        now = time.monotonic()
        while self._idle:
            connection, _ = self._idle.popitem()
            if connection.is_open and now - connection.idle_since < self._keep_alive:
                return connection
            connection.end(None)
        return None

    def add_idle(self, connection: _Connection) -> None:
        """Keep a connection that has become idle."""
        self._busy.discard(connection)
        connection.idle_since = time.monotonic()
        self._idle[connection] = None
        self._schedule_check()

    def remove(self, connection: _Connection) -> None:
        """Remove a connection that has ended."""
        self._busy.discard(connection)
        self._idle.pop(connection, None)

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
