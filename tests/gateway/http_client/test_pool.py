"""Tests of gateway/http_client/pool.py: reuse of pool, and the ends that the pool sets to requests."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from gateway.http_client.errors import ConnectionBroken, ResponseTimeout
from tests.gateway.http_client.raw_server import BODY, FRAMED, connected, raw_server, sends, stays_silent


async def test_a_connection_is_reused_until_either_side_closes_it() -> None:
    closing = FRAMED["by length"].replace(b"OK\r\n", b"OK\r\nConnection: close\r\n")
    script = [sends(FRAMED["in chunks"]), sends(FRAMED["by length"]), sends(closing), sends(FRAMED["by length"])]
    async with raw_server(*script) as server, connected(server.url, keep_alive=1.0) as pool:
        for count in (1, 1, 1, 2):
            assert await (await pool.post("/x", b"{}")).read() == BODY
            assert server.connections == count
        async with asyncio.timeout(5):
            await server.closed.wait()  # the response had `Connection: close`
            server.closed.clear()
            await server.closed.wait()  # the idle connection is closed after a while
        assert await (await pool.post("/x", b"{}")).read() == BODY
        assert server.connections == 3


async def test_a_request_on_a_closed_idle_connection_is_sent_again() -> None:
    async def closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with raw_server(sends(FRAMED["by length"]), closes, sends(FRAMED["by length"])) as server:
        async with connected(server.url) as pool:
            for _ in range(2):
                assert await (await pool.post("/x", b"{}")).read() == BODY
        assert (server.connections, len(server.requests)) == (2, 3)


async def test_a_partly_answered_request_is_not_sent_again() -> None:
    async with raw_server(sends(FRAMED["by length"]), sends(b"HTTP/1.1 20", close=True)) as server:
        async with connected(server.url) as pool:
            await (await pool.post("/x", b"{}")).read()
            with pytest.raises(ConnectionBroken):
                await pool.post("/x", b"{}")
        assert len(server.requests) == 2


async def test_silence_ends_a_response_and_its_connection() -> None:
    async with raw_server(stays_silent) as server, connected(server.url, timeout=0.2) as pool:
        with pytest.raises(ResponseTimeout):
            await pool.post("/x", b"{}")
        async with asyncio.timeout(5):
            await server.closed.wait()

    async def begins(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await sends(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")(reader, writer)
        for _ in range(4):  # each pause is shorter than the timeout, their sum is not
            await asyncio.sleep(0.4)
            await sends(b"x")(reader, writer)
        await stays_silent(reader, writer)

    async with raw_server(begins) as server, connected(server.url, timeout=1.2) as pool:
        response = await pool.post("/x", b"{}")
        received = b""
        with pytest.raises(ResponseTimeout):
            while more := await response.next_chunk():
                received += more
        assert received == b"xxxx"


async def test_a_response_ends_at_its_deadline() -> None:
    async def drips(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)

    async with raw_server(drips) as server, connected(server.url, timeout=0.4) as pool:
        response = await pool.post("/x", b"{}")
        response.deadline = time.monotonic() + 0.3
        with pytest.raises(ConnectionBroken, match="did not arrive in time"):
            async with asyncio.timeout(5):
                await response.read()


async def test_cancelling_a_request_closes_its_connection() -> None:
    async with raw_server(stays_silent) as server, connected(server.url) as pool:
        asking = asyncio.create_task(pool.post("/x", b"{}"))
        while not server.requests:
            await asyncio.sleep(0.01)
        asking.cancel()
        async with asyncio.timeout(5):
            await server.closed.wait()


async def _reads_chunks(reader: asyncio.StreamReader) -> bytes:
    """Return a body that arrives in chunks."""
    body = b""
    while size := int(await reader.readline(), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readline()
    return body


async def _pieces(count: int, size: int = 1) -> AsyncIterator[bytes]:
    for number in range(count):
        yield b""
        yield bytes([number % 256]) * size


async def test_a_body_is_sent_in_pieces_and_the_connection_is_kept() -> None:
    bodies: list[bytes] = []

    async def reads(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        bodies.append(await _reads_chunks(reader))
        await sends(FRAMED["by length"])(reader, writer)

    async with raw_server(reads, sends(FRAMED["by length"])) as server, connected(server.url) as pool:
        response = await pool.send("POST", "/x", _pieces(100, 50_000), "multipart/form-data; boundary=b")
        assert await response.read() == BODY
        assert bodies == [b"".join([piece async for piece in _pieces(100, 50_000)])]
        head = server.requests[0].decode()
        assert "Content-Type: multipart/form-data; boundary=b\r\nTransfer-Encoding: chunked\r\n\r\n" in head
        response = await pool.send("POST", "/x", b"whole", "text/plain")
        assert await response.read() == BODY
        assert server.requests[1].endswith(b"Content-Type: text/plain\r\nContent-Length: 5\r\n\r\nwhole")
        assert server.connections == 1
        with pytest.raises(ValueError, match="content type"):
            await pool.send("POST", "/x", b"x", "a\r\nb: c")


async def test_a_server_that_answers_early_gets_no_more_of_the_body() -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield b"x" * 10_000
            await asyncio.sleep(0)

    refusal = b"HTTP/1.1 413 No\r\nContent-Length: 21\r\n\r\n" + BODY
    async with raw_server(sends(refusal), sends(FRAMED["by length"])) as server, connected(server.url) as pool:
        response = await pool.send("POST", "/x", endless(), "text/plain")
        assert (response.status, await response.read()) == (413, BODY)
        before = sent
        await asyncio.sleep(0.05)
        assert sent == before
        assert await (await pool.post("/x", b"{}")).read() == BODY
        assert server.connections == 2, "the rest of the body would be read as another request"


async def test_the_error_of_a_body_ends_the_request() -> None:
    async def breaks_off() -> AsyncIterator[bytes]:
        yield b"x"
        raise LookupError("the client has gone")

    async with raw_server(stays_silent) as server, connected(server.url) as pool:
        with pytest.raises(LookupError, match="has gone"):
            await pool.send("POST", "/x", breaks_off(), "text/plain")
        async with asyncio.timeout(5):
            await server.closed.wait()


async def test_a_server_that_stops_reading_is_silent() -> None:
    async def never_reads(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(5)

    async with raw_server(never_reads) as server, connected(server.url, timeout=0.5) as pool:
        with pytest.raises(ResponseTimeout):
            await pool.send("POST", "/x", _pieces(10_000, 100_000), "text/plain")
