import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.http_client.connection import ConnectError, ConnectionBroken, ConnectionPool, ResponseTimeout

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

BODY = b"a body of some length"
FRAMED = {
    "by length": b"HTTP/1.1 200 OK\r\nContent-Length: 21\r\n\r\n" + BODY,
    "in chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\na body\r\nf;x=y\r\n of some length\r\n0\r\n\r\n",
    "until closed": b"HTTP/1.0 200 OK\r\nServer: old\r\n\r\n" + BODY,
    "behind another head": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 21\r\n\r\n" + BODY,
}


@dataclass
class ScriptedServer:
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
async def scripted_server(*script: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[ScriptedServer]:
    scripted = ScriptedServer(list(script))
    server = await asyncio.start_server(scripted.serve, "127.0.0.1", 0, ssl=tls)
    scripted.url = f"{'http' if tls is None else 'https'}://localhost:{server.sockets[0].getsockname()[1]}"
    try:
        yield scripted
    finally:
        server.close()
        await server.wait_closed()


def sends(*pieces: bytes, close: bool = False) -> Handler:
    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            if len(pieces) > 1:
                await asyncio.sleep(0.001)  # a packet of its own
        if close:
            writer.close()

    return say


async def stays_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    raise ConnectionError


@asynccontextmanager
async def connected(url: str, **how: object) -> AsyncIterator[ConnectionPool]:
    connections = ConnectionPool(url, {}, **how)  # type: ignore[arg-type]
    try:
        yield connections
    finally:
        await connections.close()


@settings(deadline=None, max_examples=40)
@given(framed=st.sampled_from(sorted(FRAMED)), cuts=st.lists(st.integers(1, 90), max_size=5, unique=True))
def test_the_response_does_not_depend_on_the_packets(framed: str, cuts: list[int]) -> None:
    async def ask() -> None:
        whole = FRAMED[framed]
        ends = [*sorted(cut for cut in cuts if cut < len(whole)), len(whole)]
        pieces = [whole[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
        async with (
            scripted_server(sends(*pieces, close=framed == "until closed")) as server,
            connected(server.url) as connections,
        ):
            response = await connections.post("/x", b"{}")
            assert (response.status, response.reason) == (200, "OK")
            assert await response.read() == BODY
            assert response.ended

    asyncio.run(ask())


async def test_the_bytes_of_a_request() -> None:
    async with scripted_server(sends(FRAMED["by length"])) as server:
        url = server.url.replace("://", "://user:p%40ss@") + "/behind a proxy/"
        connections = ConnectionPool(url, {"X-Key": "k"})
        await (await connections.post("/v1/x", b'{"a":1}')).read()
        await (await connections.request("GET", "/v1/models")).read()
        await connections.close()
    port = server.url.rpartition(":")[2]
    told = f"Host: localhost:{port}\r\nUser-Agent: myna\r\nAccept: */*\r\nAuthorization: Basic dXNlcjpwQHNz\r\nX-Key: k\r\n"
    body = 'Content-Type: application/json\r\nContent-Length: 7\r\n\r\n{"a":1}'
    assert server.requests[0].decode() == f"POST /behind%20a%20proxy/v1/x HTTP/1.1\r\n{told}{body}"
    assert server.requests[1].decode() == f"GET /behind%20a%20proxy/v1/models HTTP/1.1\r\n{told}\r\n"


@pytest.mark.parametrize("value", ["two\r\nlines", "zero\0", "naïve"])
def test_an_invalid_header_value_is_rejected(value: str) -> None:
    with pytest.raises(ValueError, match="Authorization"):
        ConnectionPool("http://localhost", {"Authorization": value})


async def test_a_connection_is_reused_until_either_side_closes_it() -> None:
    closing = FRAMED["by length"].replace(b"OK\r\n", b"OK\r\nConnection: close\r\n")
    script = [sends(FRAMED["in chunks"]), sends(FRAMED["by length"]), sends(closing), sends(FRAMED["by length"])]
    async with scripted_server(*script) as server, connected(server.url, keep_alive=1.0) as connections:
        for count in (1, 1, 1, 2):
            assert await (await connections.post("/x", b"{}")).read() == BODY
            assert server.connections == count
        async with asyncio.timeout(5):
            await server.closed.wait()  # the response had `Connection: close`
            server.closed.clear()
            await server.closed.wait()  # the idle connection is closed after a while
        assert await (await connections.post("/x", b"{}")).read() == BODY
        assert server.connections == 3


async def test_a_request_on_a_closed_idle_connection_is_sent_again() -> None:
    async def closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with scripted_server(sends(FRAMED["by length"]), closes, sends(FRAMED["by length"])) as server:
        async with connected(server.url) as connections:
            for _ in range(2):
                assert await (await connections.post("/x", b"{}")).read() == BODY
        assert (server.connections, len(server.requests)) == (2, 3)


async def test_a_partly_answered_request_is_not_sent_again() -> None:
    async with scripted_server(sends(FRAMED["by length"]), sends(b"HTTP/1.1 20", close=True)) as server:
        async with connected(server.url) as connections:
            await (await connections.post("/x", b"{}")).read()
            with pytest.raises(ConnectionBroken):
                await connections.post("/x", b"{}")
        assert len(server.requests) == 2


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("surplus", [b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 500 O"])
async def test_data_without_a_request_is_no_response(surplus: bytes, together: bool) -> None:
    said = [FRAMED["by length"] + surplus] if together else [FRAMED["by length"], surplus]
    async with scripted_server(sends(*said)) as server, connected(server.url) as connections:
        for _ in range(2):
            response = await connections.post("/x", b"{}")
            assert (response.status, await response.read()) == (200, BODY)
            await asyncio.sleep(0.05)
        assert server.connections == 2


@pytest.mark.parametrize(
    "said",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnot a length\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf of it",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nhalf o",
        b"",
    ],
)
async def test_an_invalid_response(said: bytes) -> None:
    async with scripted_server(sends(said, close=True)) as server, connected(server.url) as connections:
        with pytest.raises(ConnectionBroken):
            await (await connections.post("/x", b"{}")).read()


async def test_an_endless_head() -> None:
    async with (
        scripted_server(sends(b"HTTP/1.1 200 OK\r\nX: " + 200_000 * b"x")) as server,
        connected(server.url) as connections,
    ):
        with pytest.raises(ConnectionBroken, match="more than 65536 bytes"):
            async with asyncio.timeout(5):
                await connections.post("/x", b"{}")


async def test_an_endless_body_and_endless_trailers() -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"x" * 50_000)
            await writer.drain()

    async with scripted_server(endless) as server, connected(server.url) as connections:
        with pytest.raises(ConnectionBroken, match="more than 1000000 bytes"):
            await (response := await connections.post("/x", b"{}")).read(1_000_000)
        response.close()
    said = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n"
    some, many = [b"".join(b"X-%d: y\r\n" % number for number in range(count)) for count in (1_000, 20_000)]
    async with (
        scripted_server(sends(said + some + b"\r\n"), sends(said + many)) as server,
        connected(server.url) as connections,
    ):
        response = await connections.post("/x", b"{}")
        assert await response.read() == b"abc"
        assert list(response.headers) == ["transfer-encoding"]
        with pytest.raises(ConnectionBroken):
            await (await connections.post("/x", b"{}")).read()


async def test_a_response_ends_at_its_deadline() -> None:
    async def drips(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)

    async with scripted_server(drips) as server, connected(server.url, timeout=0.4) as connections:
        response = await connections.post("/x", b"{}")
        response.deadline = time.monotonic() + 0.3
        with pytest.raises(ConnectionBroken, match="did not arrive in time"):
            async with asyncio.timeout(5):
                await response.read()


async def test_data_before_a_broken_connection_is_returned() -> None:
    said = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf of it"
    async with scripted_server(sends(said, close=True)) as server, connected(server.url) as connections:
        response = await connections.post("/x", b"{}")
        await asyncio.sleep(0.1)
        assert await response.next_chunk() == b"half of it"
        with pytest.raises(ConnectionBroken):
            await response.next_chunk()


async def test_silence_ends_a_response_and_its_connection() -> None:
    async with scripted_server(stays_silent) as server, connected(server.url, timeout=0.2) as connections:
        with pytest.raises(ResponseTimeout):
            await connections.post("/x", b"{}")
        async with asyncio.timeout(5):
            await server.closed.wait()

    async def begins(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await sends(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")(reader, writer)
        for _ in range(4):  # each pause is shorter than the timeout, their sum is not
            await asyncio.sleep(0.4)
            await sends(b"x")(reader, writer)
        await stays_silent(reader, writer)

    async with scripted_server(begins) as server, connected(server.url, timeout=1.2) as connections:
        response = await connections.post("/x", b"{}")
        received = b""
        with pytest.raises(ResponseTimeout):
            while more := await response.next_chunk():
                received += more
        assert received == b"xxxx"


async def test_closing_an_unfinished_response_closes_its_connection() -> None:
    script = [sends(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"), sends(FRAMED["by length"])]
    async with scripted_server(*script) as server, connected(server.url) as connections:
        response = await connections.post("/x", b"{}")
        response.close()
        async with asyncio.timeout(5):
            await server.closed.wait()
        with pytest.raises(ConnectionBroken):
            await response.read()
        assert await (await connections.post("/x", b"{}")).read() == BODY


async def test_cancelling_a_request_closes_its_connection() -> None:
    async with scripted_server(stays_silent) as server, connected(server.url) as connections:
        asking = asyncio.create_task(connections.post("/x", b"{}"))
        while not server.requests:
            await asyncio.sleep(0.01)
        asking.cancel()
        async with asyncio.timeout(5):
            await server.closed.wait()


async def test_a_slow_reader_pauses_the_server() -> None:
    large = 40 << 20
    written = 0

    async def pours(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % large)
        while written < large:
            writer.write(bytes(1 << 20))
            written += 1 << 20
            await writer.drain()

    async with scripted_server(pours) as server, connected(server.url, timeout=0.2) as connections:
        response = await connections.post("/x", b"{}")
        await asyncio.sleep(0.5)  # longer than the timeout, but the server is not silent: it is paused
        assert written < large / 2
        assert len(await response.read()) == large
        assert response.ended


async def test_no_server() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        async with connected(f"http://127.0.0.1:{taken.getsockname()[1]}") as connections:
            with pytest.raises(ConnectError, match="refused"):
                await connections.post("/x", b"{}")
    async with connected("http://nowhere.invalid") as connections:
        with pytest.raises(ConnectError):
            await connections.post("/x", b"{}")


async def test_tls() -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(serving)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with scripted_server(sends(FRAMED["in chunks"]), tls=serving) as server:
        async with connected(server.url, tls=trusting) as connections:
            for _ in range(2):
                assert await (await connections.post("/x", b"{}")).read() == BODY
            assert server.connections == 1
        async with connected(server.url) as connections:
            with pytest.raises(ConnectError, match="certificate"):
                await connections.post("/x", b"{}")


async def test_a_connection_whose_data_takes_much_time_rests() -> None:
    async def floods(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"x" * 50_000)
            await writer.drain()

    def takes_long(data: bytes) -> None:
        time.sleep(0.02)

    async with scripted_server(floods) as server, connected(server.url) as connections:
        response = await connections.post("/x", b"{}")
        reading = asyncio.create_task(response.stream_to(takes_long))
        waits = []
        for _ in range(10):
            began = time.monotonic()
            await asyncio.sleep(0.001)
            waits.append(time.monotonic() - began)
        reading.cancel()
        response.close()
        assert sorted(waits)[5] < 0.2, "other tasks get turns"
    assert connections.resting_count <= 1
