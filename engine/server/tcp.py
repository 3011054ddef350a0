"""An engine that gateways reach over TCP: it outlives them, and serves several at a time.

A thread with an event loop does what has to do with the network; the engine's own thread only hears of commands, and
hands over what it has to say. A gateway shows a token before anything else is read from it.
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
    Report,
    Shutdown,
    Unwelcome,
    Welcome,
    command_decoder,
    encode_frame,
    hello_decoder,
)
from engine.server.core import EngineServer, Link

log = logging.getLogger("myna.engine")

_READ_BYTES = 1 << 18
_HELLO_BYTES = 4096
_HELLO_SECONDS = 10.0
_UNREAD_BYTES = 64 << 20
"""A gateway that leaves so much unread is hung up on."""
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""Seconds, seconds, and times: a gateway whose machine is gone is noticed within half a minute."""


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """What a gateway needs to read a checkpoint's texts: the small files beside its weights."""
    small = (path for path in folder.iterdir() if path.suffix in (".json", ".jinja") and "index" not in path.name)
    return {path.name: path.read_bytes() for path in small}


def _nobody_asks(count: int) -> None:
    """How many there are."""


class Listener:
    """Owner of the port and of the connections. `token`: what gateways have to show."""

    def __init__(
        self,
        hub: EngineServer,
        token: str,
        info: EngineInfo,
        files: dict[str, bytes],
        calls: Callable[[int], None] = _nobody_asks,
    ) -> None:
        """`calls` is told how many gateways are connected, whenever that changes."""
        self._hub = hub
        self._calls = calls
        self._let_in = 0
        self._token = token.encode()
        self._welcome = encode_frame(Welcome(info, files))
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="network", daemon=True)

    def start(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> str:
        """Listens from now on. Returns the address. Raises OSError if it cannot."""
        self._thread.start()
        return asyncio.run_coroutine_threadsafe(self._listen(host, port, tls), self._loop).result()

    async def _listen(self, host: str, port: int, tls: ssl.SSLContext | None) -> str:
        self._server = await asyncio.start_server(self._serve, host, port, ssl=tls)
        where, at = self._server.sockets[0].getsockname()[:2]
        return f"{'tcp' if tls is None else 'tls'}://{f'[{where}]' if ':' in where else where}:{at}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = "{}:{}".format(*writer.get_extra_info("peername")[:2])
        link: Link | None = None
        self._writers.add(writer)
        try:
            _keep_alive(writer.get_extra_info("socket"))
            frames = FrameBuffer(_HELLO_BYTES)
            if (why := await self._greeted(reader, frames)) is not None:
                log.warning("a gateway at %s is not let in: %s", peer, why)
                writer.write(encode_frame(Unwelcome(why)))
                await writer.drain()
                return
            log.info("a gateway at %s has come", peer)
            writer.write(self._welcome)
            frames.most = MAX_FRAME
            link = Link(_Connection(self._loop, writer))
            self._count(1)
            data = b""
            while True:
                commands = [command_decoder.decode(body) for body in frames.feed(data)]
                if any(isinstance(command, Shutdown) for command in commands):  # of the link: the engine is not its own
                    return
                if commands:
                    self._hub.post(link, commands)
                if not (data := await reader.read(_READ_BYTES)):
                    return
        except (OSError, FrameError, msgspec.DecodeError) as error:
            log.warning("the link to the gateway at %s broke: %s", peer, error)
        finally:
            if link is not None:
                self._count(-1)
                self._hub.post(link, None)
                log.info("the gateway at %s has gone", peer)
            self._writers.discard(writer)
            writer.close()

    def _count(self, change: int) -> None:
        self._let_in += change
        self._calls(self._let_in)

    async def _greeted(self, reader: asyncio.StreamReader, frames: FrameBuffer) -> str | None:
        """Reads the first frame. Why its sender is not let in; None if it is."""
        try:
            async with asyncio.timeout(_HELLO_SECONDS):
                bodies: list[bytes] = []
                while not bodies:
                    data = await reader.read(_HELLO_BYTES)
                    if not data:
                        return "it said nothing"
                    bodies = list(frames.feed(data))
                hello = hello_decoder.decode(bodies[0])
        except TimeoutError:
            return f"it showed no token within {_HELLO_SECONDS:g} s"
        except (FrameError, msgspec.DecodeError):
            return "it speaks another language"
        if len(bodies) > 1:
            return "it did not wait for an answer"
        if not hmac.compare_digest(hello.token.encode(), self._token):
            return "the token is wrong"
        if hello.version != VERSION:
            return f"it speaks version {hello.version} of the link, and this engine {VERSION}"
        return None

    def close(self) -> None:
        """Hangs up on everybody."""

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


class _Connection:
    """The way to one gateway; see `FrameSink`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, writer: asyncio.StreamWriter) -> None:
        self._loop, self._writer = loop, writer

    def send(self, report: Report) -> None:
        """Hands it to the network's thread."""
        self._loop.call_soon_threadsafe(self._write, encode_frame(report))

    def _write(self, frame: bytes) -> None:
        transport = self._writer.transport
        if transport.is_closing():
            return
        self._writer.write(frame)
        if transport.get_write_buffer_size() > _UNREAD_BYTES:
            log.warning("a gateway does not read what it is told; hanging up")
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
    stopping: Callable[[Callable[[], None]], None],
    ready: Callable[[EngineInfo, str], None],
    calls: Callable[[int], None] = _nobody_asks,
) -> None:
    """Loads the model and serves gateways until told to stop.

    `stopping` is given what ends the serving. `ready` is told of the engine and its address; `calls` how many gateways
    are connected. Raises EngineError or OSError if it cannot.
    """
    hub = EngineServer()
    local = Link(_Nobody())
    stopping(lambda: hub.post(local, [Shutdown()]))
    engine = Engine(config)
    listener = Listener(hub, token, engine.info, tokenizer_files(Path(engine.info.folder)), calls)
    ready(engine.info, listener.start(host, port, tls))
    try:
        hub.serve(engine)
    finally:
        listener.close()


class _Nobody:
    def send(self, report: Report) -> None:
        """There is nobody to tell."""
