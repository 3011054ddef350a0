"""Serve WebSockets: their number, their end at a shutdown, and streams of events as messages."""

from collections.abc import Collection

from aiohttp import WSCloseCode, hdrs, web

from gateway.errors import RequestError
from gateway.graph.limits import SharedLimit
from gateway.http.middleware.auth import TENANT
from gateway.http.slow_client import STREAM_SECONDS, wait_written
from gateway.http.sse import EventStream

MAX_MESSAGE_BYTES = 4 << 20
"""Maximum size of a message from a client, in bytes. aiohttp collects a message before anything can count it."""
MAX_SOCKETS = 256
"""Maximum number of open WebSockets of all API keys together."""
_PING_SECONDS = 30.0
"""Interval of pings, in seconds. A client that does not answer is disconnected after half of it."""
_CLOSE_SECONDS = 5.0
"""Longest wait for the client's part of the closing handshake, in seconds."""


class WebSockets:
    """Registry of the open WebSockets, which closes them when the server stops."""

    def __init__(self, limit: SharedLimit, origins: Collection[str] = ()) -> None:
        """`limit`: maximum number of them. `origins`: other origins whose pages may open some; `*` allows all."""
        self._limit = limit
        self._origins = origins
        self._open: set[web.WebSocketResponse] = set()

    async def accept(self, request: web.Request, max_message_bytes: int) -> web.WebSocketResponse:
        """Complete the handshake. Call `release` at the end. Raises RequestError if the request asks for no WebSocket,
        or there are too many."""
        if request.headers.get("Upgrade", "").lower() != "websocket":
            message = "this route accepts GET only with an upgrade to a WebSocket; otherwise send a POST request"
            raise RequestError(426, message, code="upgrade_required", headers={"Upgrade": "websocket"})
        if not self._allows(request.headers.get(hdrs.ORIGIN), request.host):
            message = "pages of this origin may not open WebSockets here; allow it by --cors-origin"
            raise RequestError(403, message, code="origin_not_allowed")
        if not self._limit.has_room(request[TENANT]):
            message = "this API key has too many open WebSockets, or the server has; close some, or use POST"
            raise RequestError(429, message, code="overloaded")
        socket = web.WebSocketResponse(
            heartbeat=_PING_SECONDS, max_msg_size=max_message_bytes, compress=False, timeout=_CLOSE_SECONDS
        )
        self._limit.add(request[TENANT])
        self._open.add(socket)
        try:
            await socket.prepare(request)
        except BaseException:
            self.release(request, socket)
            raise
        return socket

    def _allows(self, origin: str | None, host: str) -> bool:
        """Return whether a page of the origin may open a WebSocket. Browsers ask no server before they open one, so
        any page could use a server on the user's machine."""
        if origin is None or "*" in self._origins or origin in self._origins:
            return True
        return origin.partition("://")[2] == host

    def release(self, request: web.Request, socket: web.WebSocketResponse) -> None:
        """Count a WebSocket as closed."""
        self._open.discard(socket)
        self._limit.remove(request[TENANT])

    async def close_all(self) -> None:
        """Close all WebSockets: the server stops."""
        for socket in [*self._open]:
            await socket.close(code=WSCloseCode.GOING_AWAY, message=b"the server stops")


WEBSOCKETS = web.AppKey("websockets", WebSockets)


class MessageStream(EventStream):
    """Writer of events to a WebSocket, each as one message with its data. Comments are not sent."""

    def __init__(self, request: web.Request, socket: web.WebSocketResponse, lane: str | None) -> None:
        """`lane`: the `stream_id` that each event repeats, if the client has chosen one."""
        super().__init__(request)
        self._socket = socket
        self._head = b"{" if lane is None else b'{"stream_id":"%b",' % lane.encode()

    def try_write(self, data: bytes) -> bool:
        """Return False: messages are written by `write`, which waits."""
        return False

    async def write(self, data: bytes) -> None:
        """Write events. Wait while the client reads too slowly. See `EventStream.write`."""
        try:
            for event in data.split(b"\n\n"):
                content = event.partition(b"data: ")[2]
                if content:
                    self._has_started = True
                    message = (self._head + content.removeprefix(b"{")).decode()
                    await wait_written(self._request, self._socket.send_str(message), STREAM_SECONDS)
        except BaseException:
            self._stop_timer()
            raise

    async def end(self, data: bytes = b"", *, done: bool = True) -> web.StreamResponse:
        """Write the last events. The WebSocket stays open, and `done` has no effect."""
        self._stop_timer()
        await self.write(data)
        return self._socket
