"""Tests of gateway/http_client/connection.py: any bytes of a server, in any packets."""

import asyncio
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.http_client.errors import ConnectionBroken
from tests.gateway.http_client.raw_server import BODY, FRAMED, connected, raw_server, sends


@settings(max_examples=40)
@given(framed=st.sampled_from(sorted(FRAMED)), cuts=st.lists(st.integers(1, 90), max_size=5, unique=True))
def test_the_response_does_not_depend_on_the_packets(framed: str, cuts: list[int]) -> None:
    async def ask() -> None:
        whole = FRAMED[framed]
        ends = [*sorted(cut for cut in cuts if cut < len(whole)), len(whole)]
        pieces = [whole[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
        async with (
            raw_server(sends(*pieces, close=framed == "until closed")) as server,
            connected(server.url) as pool,
        ):
            response = await pool.post("/x", b"{}")
            assert (response.status, response.reason) == (200, "OK")
            assert await response.read() == BODY
            assert response.ended

    asyncio.run(ask())


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("surplus", [b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 500 O"])
async def test_data_without_a_request_is_no_response(surplus: bytes, together: bool) -> None:
    sent = [FRAMED["by length"] + surplus] if together else [FRAMED["by length"], surplus]
    async with raw_server(sends(*sent)) as server, connected(server.url) as pool:
        for _ in range(2):
            response = await pool.post("/x", b"{}")
            assert (response.status, await response.read()) == (200, BODY)
            await asyncio.sleep(0.05)
        assert server.connections == 2


@pytest.mark.parametrize(
    "sent",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnot a length\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf of it",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nhalf o",
        b"",
    ],
)
async def test_an_invalid_response(sent: bytes) -> None:
    async with raw_server(sends(sent, close=True)) as server, connected(server.url) as pool:
        with pytest.raises(ConnectionBroken):
            await (await pool.post("/x", b"{}")).read()


async def test_an_endless_head() -> None:
    async with (
        raw_server(sends(b"HTTP/1.1 200 OK\r\nX: " + 200_000 * b"x")) as server,
        connected(server.url) as pool,
    ):
        with pytest.raises(ConnectionBroken, match="more than 65536 bytes"):
            async with asyncio.timeout(5):
                await pool.post("/x", b"{}")


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

    async with raw_server(pours) as server, connected(server.url, timeout=0.2) as pool:
        response = await pool.post("/x", b"{}")
        await asyncio.sleep(0.5)  # longer than the timeout, but the server is not silent: it is paused
        assert written < large / 2
        assert len(await response.read()) == large
        assert response.ended


async def test_a_connection_whose_data_takes_much_time_rests() -> None:
    async def floods(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"x" * 50_000)
            await writer.drain()

    def takes_long(data: bytes) -> None:
        time.sleep(0.02)

    async with raw_server(floods) as server, connected(server.url) as pool:
        response = await pool.post("/x", b"{}")
        reading = asyncio.create_task(response.stream_to(takes_long))
        waits = []
        for _ in range(10):
            began = time.monotonic()
            await asyncio.sleep(0.001)
            waits.append(time.monotonic() - began)
        reading.cancel()
        response.close()
        assert sorted(waits)[5] < 0.2, "other tasks get turns"
    assert pool._resting_count <= 1


async def test_endless_trailers() -> None:
    sent = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n"
    some, many = [b"".join(b"X-%d: y\r\n" % number for number in range(count)) for count in (1_000, 20_000)]
    async with (
        raw_server(sends(sent + some + b"\r\n"), sends(sent + many)) as server,
        connected(server.url) as pool,
    ):
        response = await pool.post("/x", b"{}")
        assert await response.read() == b"abc"
        assert list(response.headers) == ["transfer-encoding"]
        with pytest.raises(ConnectionBroken):
            await (await pool.post("/x", b"{}")).read()
