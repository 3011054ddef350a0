"""Engine server over TCP: it outlives its gateways, and serves several at a time.

A thread with an event loop does all network work. The engine's thread only receives commands and returns reports. A
gateway authenticates with a token before it sends anything else.
"""

import asyncio
import hmac
import logging
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from engine.config import EngineConfig
from engine.engine import Engine
from engine.protocol import (
    MAX_FRAME,
    VERSION,
    EngineInfo,
    FrameBuffer,
    FrameError,
    Refusal,
    Report,
    Shutdown,
    Welcome,
    command_decoder,
    encode_frame,
    hello_decoder,
)
from engine.server.core import Connection, EngineServer

log = logging.getLogger("myna.engine")

_READ_BYTES = 1 << 18
_HELLO_BYTES = 4096
_HELLO_SECONDS = 10.0
_UNREAD_BYTES = 64 << 20
"""Maximum size of unread output. The engine closes a connection that exceeds it."""
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""TCP keepalive: idle time and interval in seconds, and number of probes. A gateway whose machine is gone is detected
within half a minute."""


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """Return the small files beside a checkpoint's weights, from which a gateway loads the tokenizer."""
    small = (path for path in folder.iterdir() if path.suffix in (".json", ".jinja") and "index" not in path.name)
    return {path.name: path.read_bytes() for path in small}


def _ignore_count(count: int) -> None:
    """Ignore the number of gateways."""


class Listener:
    """Owner of the listening socket and of the connections. `token`: secret that gateways must send."""

    def __init__(
        self,
        server: EngineServer,
        token: str,
        info: EngineInfo,
        files: dict[str, bytes],
        on_connections: Callable[[int], None] = _ignore_count,
    ) -> None:
        """Prepare to listen. `on_connections` is called with the number of connected gateways when it changes."""
        self._engine_server = server
        self._on_connections = on_connections
        self._connected = 0
        self._token = token.encode()
        self._welcome = encode_frame(Welcome(info, files))
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="network", daemon=True)

    def start(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> str:
        """Start to listen. Return the address. Raises OSError if it cannot listen."""
        self._thread.start()
        return asyncio.run_coroutine_threadsafe(self._listen(host, port, tls), self._loop).result()

    async def _listen(self, host: str, port: int, tls: ssl.SSLContext | None) -> str:
        self._server = await asyncio.start_server(self._serve, host, port, ssl=tls)
        host_name, bound_port = self._server.sockets[0].getsockname()[:2]
        return f"{'tcp' if tls is None else 'tls'}://{f'[{host_name}]' if ':' in host_name else host_name}:{bound_port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = "{}:{}".format(*writer.get_extra_info("peername")[:2])
        connection: Connection | None = None
        self._writers.add(writer)
        try:
            _keep_alive(writer.get_extra_info("socket"))
            frames = FrameBuffer(_HELLO_BYTES)
            if (why := await self._authenticate(reader, frames)) is not None:
                log.warning("rejected the gateway at %s: %s", peer, why)
                writer.write(encode_frame(Refusal(why)))
                await writer.drain()
                return
            log.info("the gateway at %s connected", peer)
            writer.write(self._welcome)
            frames.max_size = MAX_FRAME
            connection = Connection(_ConnectionSink(self._loop, writer))
            self._count(1)
            data = b""
            while True:
                commands = [command_decoder.decode(body) for body in frames.feed(data)]
                # It ends the connection only: other gateways use the engine too.
                if any(isinstance(command, Shutdown) for command in commands):
                    return
                if commands:
                    self._engine_server.post(connection, commands)
                if not (data := await reader.read(_READ_BYTES)):
                    return
        except (OSError, FrameError, msgspec.DecodeError) as error:
            log.warning("the connection to the gateway at %s broke: %s", peer, error)
        finally:
            if connection is not None:
                self._count(-1)
                self._engine_server.post(connection, None)
                log.info("the gateway at %s disconnected", peer)
            self._writers.discard(writer)
            writer.close()

    def _count(self, change: int) -> None:
        self._connected += change
        self._on_connections(self._connected)

    async def _authenticate(self, reader: asyncio.StreamReader, frames: FrameBuffer) -> str | None:
        """Receive the first frame. Return why the gateway is rejected, or None."""
        try:
            async with asyncio.timeout(_HELLO_SECONDS):
                bodies: list[bytes] = []
                while not bodies:
                    data = await reader.read(_HELLO_BYTES)
                    if not data:
                        return "it sent nothing"
                    bodies = list(frames.feed(data))
                hello = hello_decoder.decode(bodies[0])
        except TimeoutError:
            return f"it sent no token within {_HELLO_SECONDS:g} s"
        except (FrameError, msgspec.DecodeError):
            return "its first message is invalid"
        if len(bodies) > 1:
            return "it did not wait for a reply"
        if not hmac.compare_digest(hello.token.encode(), self._token):
            return "the token is wrong"
        if hello.version != VERSION:
            return f"it uses protocol version {hello.version}; this engine uses version {VERSION}"
        return None

    def close(self) -> None:
        """Close all connections and stop listening."""

        async def end() -> None:
            if self._server is not None:
                self._server.close()
            for writer in self._writers:
                writer.close()
            await asyncio.sleep(0)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class _ConnectionSink:
    """Output to one gateway; see `FrameSink`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, writer: asyncio.StreamWriter) -> None:
        self._loop, self._writer = loop, writer

    def send(self, report: Report) -> None:
        """Pass a report to the network thread."""
        self._loop.call_soon_threadsafe(self._write, encode_frame(report))

    def _write(self, frame: bytes) -> None:
        transport = self._writer.transport
        if transport.is_closing():
            return
        self._writer.write(frame)
        if transport.get_write_buffer_size() > _UNREAD_BYTES:
            log.warning("a gateway does not read its reports; closing the connection")
            transport.abort()


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def serve(
    config: EngineConfig,
    host: str,
    port: int,
    token: str,
    tls: ssl.SSLContext | None,
    *,
    on_start: Callable[[Callable[[], None]], None],
    on_ready: Callable[[EngineInfo, str], None],
    on_connections: Callable[[int], None] = _ignore_count,
) -> None:
    """Load the model and serve gateways until `Shutdown`.

    `on_start` receives a function that stops the server.
    `on_ready` is called with the engine's info and its address.
    `on_connections` is called with the number of connected gateways when it changes.

    Raises EngineError if the engine cannot start, OSError if it cannot listen.
    """
    server = EngineServer()
    local = Connection(_NullSink())
    on_start(lambda: server.post(local, [Shutdown()]))
    engine = Engine(config)
    listener = Listener(server, token, engine.info, tokenizer_files(Path(engine.info.folder)), on_connections)
    on_ready(engine.info, listener.start(host, port, tls))
    try:
        server.serve(engine)
    finally:
        listener.close()


class _NullSink:
    def send(self, report: Report) -> None:
        """Discard the report."""
