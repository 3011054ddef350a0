"""A server that sends the bytes of a test, and pools that are connected to it."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from gateway.http_client.pool import ConnectionPool

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

BODY = b"a body of some length"
FRAMED = {
    "by length": b"HTTP/1.1 200 OK\r\nContent-Length: 21\r\n\r\n" + BODY,
    "in chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\na body\r\nf;x=y\r\n of some length\r\n0\r\n\r\n",
    "until closed": b"HTTP/1.0 200 OK\r\nServer: old\r\n\r\n" + BODY,
    "behind another head": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 21\r\n\r\n" + BODY,
}


@dataclass
class RawServer:
    """Server that sends the bytes of a test: to each request the next handler of `script`, or the last one."""

    script: list[Handler]
    url: str = ""
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a client closes a connection."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(
                    (int(line[16:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length: ")), 0
                )
                self.requests.append(head + await reader.readexactly(length))
                await self.script[min(len(self.requests), len(self.script)) - 1](reader, writer)
                if writer.is_closing():
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            self.closed.set()
        finally:
            writer.close()


@asynccontextmanager
async def raw_server(*script: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[RawServer]:
    raw = RawServer(list(script))
    server = await asyncio.start_server(raw.serve, "127.0.0.1", 0, ssl=tls)
    raw.url = f"{'http' if tls is None else 'https'}://localhost:{server.sockets[0].getsockname()[1]}"
    try:
        yield raw
    finally:
        server.close()
        await server.wait_closed()


def sends(*pieces: bytes, close: bool = False) -> Handler:
    async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            if len(pieces) > 1:
                await asyncio.sleep(0.001)  # a packet of its own
        if close:
            writer.close()

    return send


async def stays_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    raise ConnectionError


@asynccontextmanager
async def connected(url: str, **options: object) -> AsyncIterator[ConnectionPool]:
    pool = ConnectionPool(url, {}, **options)  # type: ignore[arg-type]
    try:
        yield pool
    finally:
        await pool.close()
