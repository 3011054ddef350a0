"""HTTP/1.1 to one server: connections that are kept, and answers that are read as they come.

aiohttp's client took a fourth of a plain request's time here, for cookies, redirects, payloads and traces that nothing
of this needs.
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
"""Of an answer, at most."""
_BODY_BYTES = 64 << 20
"""Maximum size of a body that is read as a whole, in bytes."""
_UNREAD_BYTES = 256 << 10
"""Of an answer's body, from which on its server is kept waiting."""
_ADDRESS_SECONDS = 60.0
"""For which a name's addresses are remembered."""
_CONNECT_SECONDS = 10.0
_TURN_SECONDS = 0.005
"""Time that data may take the event loop before its connection rests, in seconds. Of an honest server it takes a
hundredth of that."""
_LOOKS = 8
"""In the time for which a server may be silent, at it."""
_LONGEST_LOOK = 1.0
_ALWAYS = {"User-Agent": "myna", "Accept": "*/*"}
"""What goes along with every request: some that stand before servers take none without."""


class ConnectError(Exception):
    """No connection could be made."""


class ConnectionBroken(Exception):
    """The connection broke off, or what came over it was no HTTP."""


class ResponseTimeout(ConnectionBroken):
    """Nothing came for too long."""


class Response:
    """An answer whose head is there. `headers` by their names in lower case. `ended`: whether all of the body has come,
    and was given away but for what the next `more` returns. To be closed by whoever reads it."""

    def __init__(self, connection: "_Connection", patience: float) -> None:
        self.status = 0
        self.reason = ""
        self.headers: dict[str, str] = {}
        self.ended = False
        self.patience = patience
        """Seconds for which the server may be silent now."""
        self.until = math.inf
        """Time of the monotonic clock at which the answer is given up, whatever arrives."""
        self._connection = connection
        self._body: list[bytes] = []
        self._unread = 0
        self._error: ConnectionBroken | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._tell: Callable[[bytes], None] | None = None
        self._raised: Exception | None = None
        """By that."""

    async def more(self) -> bytes:
        """What has come of the body, waited for; nothing once that was all. Raises Broken behind all that came."""
        while not self._body:
            if self._error is not None:
                raise self._anew(self._error)
            if self.ended:
                return b""
            await self._change()
        return self._taken()

    def _taken(self) -> bytes:
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        if self._unread > _UNREAD_BYTES:
            self._connection.resume()
        self._unread = 0
        return body

    async def each(self, tell: Callable[[bytes], None]) -> None:
        """Tells of the body as it comes, from where it comes; returns once that was all. Raises Broken behind all that
        came, and what `tell` raises."""
        self._tell = tell
        try:
            self._give()
            while self._raised is None and self._error is None and not self.ended:
                await self._change()
        finally:
            self._tell = None
        if self._raised is not None:
            try:
                raise self._raised
            finally:
                self._raised = None  # its traceback knows this answer
        if self._error is not None:
            raise self._anew(self._error)

    @staticmethod
    def _anew(error: ConnectionBroken) -> ConnectionBroken:
        """One that is kept nowhere: a traceback knows whoever was at work, and so this answer."""
        return type(error)(*error.args)

    def _give(self) -> None:
        if self._body and self._tell is not None and self._raised is None:
            try:
                self._tell(self._taken())
            except Exception as error:  # of whoever waits for the answer, and not of whoever brought it
                self._raised = error

    async def read(self, most: int = _BODY_BYTES, *, cut: bool = False) -> bytes:
        """Return the rest of the body. Raises Broken if it has more than `most` bytes; with `cut`, return its first
        bytes instead."""
        body = bytearray()
        while more := await self.more():
            body += more
            if len(body) > most:
                if cut:
                    break
                raise ConnectionBroken(f"its answer has more than {most} bytes")
        return bytes(body[:most])

    def close(self) -> None:
        """Ends it. Its connection is kept if all of it had come."""
        if not self.ended:
            self._connection.end(ConnectionBroken("it was closed here"))

    async def head(self) -> None:
        """Waits for the head. Raises Broken."""
        while not self.status:
            if self._error is not None:
                raise self._anew(self._error)
            await self._change()

    async def _change(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    # told by the connection

    def came(self, body: bytes) -> None:
        """Some of the body, to be told of by `wake`."""
        self._body.append(body)
        self._unread += len(body)
        if self._unread > _UNREAD_BYTES:
            self._connection.pause()

    def wake(self) -> None:
        """Something has come, or was all."""
        if self._tell is not None:
            self._give()
            if self._raised is None and self._error is None and not self.ended:
                return
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, error: ConnectionBroken) -> None:
        """Nothing more will come."""
        self._error = error
        self.wake()


class _Connection(asyncio.Protocol):
    """One of them, with one answer at a time. Also told by its parser of what it finds."""

    def __init__(self, owner: "ConnectionPool") -> None:
        self.idle_since = 0.0
        self.heard = time.monotonic()
        """When something came, or was asked."""
        self.response: Response | None = None
        """The one that is coming."""
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._head: dict[str, str] = {}
        self._reason = ""
        self._head_bytes = 0
        self._trailer_bytes = 0
        self._unasked = False
        """Whether something has come behind an answer."""
        self._until_closed = False
        """Whether the body ends with the connection."""
        self.paused = False
        """Whether the server is kept waiting, since nobody reads what came."""
        self._rests = False
        """Whether the server is kept waiting, since what came took the event loop too long."""

    @property
    def open(self) -> bool:
        """Whether it can be asked."""
        return self._transport is not None and not self._transport.is_closing()

    def ask(self, request: bytes, patience: float) -> Response:
        """Sends a request; its answer is yet to come."""
        assert self._transport is not None
        self.heard = time.monotonic()
        self.response = response = Response(self, patience)
        self._head_bytes = self._trailer_bytes = 0
        self._transport.write(request)
        return response

    def end(self, error: ConnectionBroken | None) -> None:
        """Closes it at once; whoever reads from it is told."""
        if self._transport is not None:
            self._transport.abort()
        response, self.response = self.response, None
        self._owner.gone(self)
        if response is not None and error is not None:
            response.fail(error)

    def pause(self) -> None:
        """Takes nothing more for now."""
        self.paused = True
        self._apply_pauses()

    def resume(self) -> None:
        """Takes more."""
        self.heard = time.monotonic()
        if self.paused:
            self.paused = False
            self._apply_pauses()

    def _apply_pauses(self) -> None:
        if self.open:
            assert self._transport is not None
            reads = not (self.paused or self._rests)
            if reads and not self._transport.is_reading():
                self._transport.resume_reading()
            elif not reads and self._transport.is_reading():
                self._transport.pause_reading()

    def _rest(self, seconds: float) -> None:
        """Read nothing for as long as the last data took the event loop, times the number of connections that rest."""
        self._rests = True
        self._owner.resting += 1
        self._apply_pauses()
        asyncio.get_running_loop().call_later(seconds * self._owner.resting, self._go_on)

    def _go_on(self) -> None:
        self._owner.resting -= 1
        self._rests = False
        self._apply_pauses()

    @property
    def answered(self) -> bool:
        """Whether anything came of the answer that was asked for last."""
        return self._head_bytes > 0

    # of the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are, though they do not say so

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        response = self.response
        if response is None:  # nothing was asked
            self.end(None)
            return
        self.heard = began = time.monotonic()
        if not response.status:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade, ValueError) as error:
            self.end(ConnectionBroken(f"what came is no HTTP: {error}"))
            return
        if not response.status and self._head_bytes > _HEAD_BYTES:
            self.end(ConnectionBroken("the head of its answer has no end"))
            return
        if self._unasked:
            self.end(None)
        response.wake()
        spent = time.monotonic() - began
        if spent > _TURN_SECONDS and self.open and not self._rests:
            self._rest(spent)

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio.Protocol."""
        response, self.response = self.response, None
        self._owner.gone(self)
        if response is None:
            return
        if self._until_closed and response.status and error is None:
            response.ended = True
            response.wake()
        else:
            response.fail(ConnectionBroken("the server closed the connection" if error is None else f"{error}"))

    # of the parser

    def on_message_begin(self) -> None:
        """See httptools."""
        self._head, self._reason = {}, ""
        self._unasked |= self.response is None

    def on_status(self, reason: bytes) -> None:
        """See httptools."""
        self._reason += reason.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools."""
        if self.response is not None and self.response.status:  # a trailer
            self._trailer_bytes += len(name) + len(value)
            if self._trailer_bytes > _HEAD_BYTES:
                raise ValueError("the trailers have no end")
            return
        self._head[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """See httptools."""
        status = self._parser.get_status_code()
        response = self.response
        if response is None or status < 200:  # one that says that another follows
            return
        head = self._head
        self._until_closed = "content-length" not in head and "transfer-encoding" not in head
        response.reason, response.headers = self._reason, head
        response.status = status

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        if self.response is not None:
            self.response.came(body)

    def on_message_complete(self) -> None:
        """See httptools."""
        response = self.response
        if response is None or not response.status:
            return
        response.ended = True
        self.response = None
        if self._parser.should_keep_alive():
            self.resume()
            self._owner.keep(self)
        else:
            self.end(None)


def _why(error: OSError) -> str:
    """In words, without asyncio's own."""
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
        patience: float = 300.0,
        kept: float = 4.0,
    ) -> None:
        """`url`: the server's, and what all paths begin with. `headers` go along with every request. `tls`: whom to
        trust. `patience`: seconds of silence after which an answer is given up. `kept`: seconds for which an idle
        connection is."""
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        host = parts.hostname or ""
        self._host = host if host.isascii() else host.encode("idna").decode()
        self._port = parts.port or (443 if secure else 80)
        self._tls = (tls or ssl.create_default_context()) if secure else None
        self._prefix = quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~")
        address = f"[{self._host}]" if ":" in self._host else self._host
        told = {"Host": address if parts.port is None else f"{address}:{parts.port}", **_ALWAYS}
        if parts.username is not None:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            told["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
        for name, value in {**told, **headers}.items():
            if not value.isascii() or not value.isprintable():
                raise ValueError(f"the header {name} has characters that no header has")
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in {**told, **headers}.items())
        self._patience = patience
        self._kept = kept
        self._heads: dict[tuple[str, str], bytes] = {}
        self.resting = 0
        """Connections that rest."""
        self._idle: dict[_Connection, None] = {}
        """The longest idle ones first."""
        self._busy: set[_Connection] = set()
        self._addresses: tuple[float, Sequence[aiohappyeyeballs.AddrInfoType]] = (0.0, ())
        self._timer: asyncio.TimerHandle | None = None

    def post(self, path: str, content: bytes) -> Awaitable[Response]:
        """See `ask`."""
        return self.ask("POST", path, content)

    async def ask(self, method: str, path: str, content: bytes = b"") -> Response:
        """The answer to a request, once its head is there. Raises ConnectError or Broken."""
        if (kept := self._take()) is not None:
            try:
                return await self._answer(kept, method, path, content)
            except ConnectionBroken as error:
                # most likely the server had closed it just then, as it may have closed all the others: so a new one
                if kept.answered or isinstance(error, ResponseTimeout):
                    raise
        return await self._answer(await self._connect(), method, path, content)

    async def _answer(self, connection: _Connection, method: str, path: str, content: bytes) -> Response:
        self._busy.add(connection)
        self._watch()
        head, end = self._head(method, path), b"\r\n"
        if content:
            end = b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(content)
        response = connection.ask(head + end + content, self._patience)
        try:
            await response.head()
        except BaseException:
            response.close()
            raise
        return response

    def _head(self, method: str, path: str) -> bytes:
        head = self._heads.get((method, path))
        if head is None:
            head = f"{method} {self._prefix}{path} HTTP/1.1\r\n{self._headers}".encode()
            self._heads[method, path] = head
        return head

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                sock = await aiohappyeyeballs.start_connection(await self._resolved(), happy_eyeballs_delay=0.25)
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
        except OSError as error:  # TLS's among them
            raise ConnectError(_why(error)) from error
        return connection

    async def _resolved(self) -> Sequence[aiohappyeyeballs.AddrInfoType]:
        """Raises OSError."""
        until, addresses = self._addresses
        now = time.monotonic()
        if now >= until:
            loop = asyncio.get_running_loop()
            addresses = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
            self._addresses = now + _ADDRESS_SECONDS, addresses
        return addresses

    # which are kept

    def _take(self) -> _Connection | None:
        """An idle one, the last used first."""
        now = time.monotonic()
        while self._idle:
            connection, _ = self._idle.popitem()
            if connection.open and now - connection.idle_since < self._kept:
                return connection
            connection.end(None)
        return None

    def keep(self, connection: _Connection) -> None:
        """It has nothing to do."""
        self._busy.discard(connection)
        connection.idle_since = time.monotonic()
        self._idle[connection] = None
        self._watch()

    def gone(self, connection: _Connection) -> None:
        """It has ended."""
        self._busy.discard(connection)
        self._idle.pop(connection, None)

    def _watch(self) -> None:
        if self._timer is None:
            pause = min(_LONGEST_LOOK, self._patience / _LOOKS)
            self._timer = asyncio.get_running_loop().call_later(pause, self._look)

    def _look(self) -> None:
        """One timer looks after the silence of all servers' answers and after idle connections."""
        self._timer = None
        now = time.monotonic()
        for connection in [*self._busy]:
            response = connection.response
            silent = now - connection.heard
            if response is not None and not connection.paused and silent > response.patience:
                connection.end(ResponseTimeout(f"silent for {response.patience:g} s"))
            elif response is not None and now > response.until:
                connection.end(ConnectionBroken("its answer has no end"))
        for connection in list(takewhile(lambda one: now - one.idle_since >= self._kept, self._idle)):
            connection.end(None)
        if self._busy or self._idle:
            self._watch()

    async def close(self) -> None:
        """Ends all of them."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for connection in [*self._idle, *self._busy]:
            connection.end(ConnectionBroken("the gateway ends"))
        await asyncio.sleep(0)  # so that they are closed
