"""Tests of gateway/http_client/response.py: reading of bodies, also of those that break off."""

import asyncio

import pytest

from gateway.http_client.errors import ConnectionBroken
from tests.gateway.http_client.raw_server import BODY, FRAMED, connected, raw_server, sends


async def test_an_endless_body() -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"x" * 50_000)
            await writer.drain()

    async with raw_server(endless) as server, connected(server.url) as pool:
        with pytest.raises(ConnectionBroken, match="more than 1000000 bytes"):
            await (response := await pool.post("/x", b"{}")).read(1_000_000)
        response.close()


async def test_data_before_a_broken_connection_is_returned() -> None:
    sent = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf of it"
    async with raw_server(sends(sent, close=True)) as server, connected(server.url) as pool:
        response = await pool.post("/x", b"{}")
        await asyncio.sleep(0.1)
        assert await response.next_chunk() == b"half of it"
        with pytest.raises(ConnectionBroken):
            await response.next_chunk()


async def test_closing_an_unfinished_response_closes_its_connection() -> None:
    script = [sends(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"), sends(FRAMED["by length"])]
    async with raw_server(*script) as server, connected(server.url) as pool:
        response = await pool.post("/x", b"{}")
        response.close()
        async with asyncio.timeout(5):
            await server.closed.wait()
        with pytest.raises(ConnectionBroken):
            await response.read()
        assert await (await pool.post("/x", b"{}")).read() == BODY


async def test_an_error_of_the_callback_ends_the_stream() -> None:
    def fails(data: bytes) -> None:
        raise ValueError(f"{len(data)} bytes")

    async with raw_server(sends(FRAMED["by length"])) as server, connected(server.url) as pool:
        response = await pool.post("/x", b"{}")
        with pytest.raises(ValueError, match="21 bytes"):
            await response.stream_to(fails)
        assert response.ended


async def test_a_long_body_is_cut_on_request() -> None:
    async with raw_server(sends(FRAMED["by length"])) as server, connected(server.url) as pool:
        assert await (await pool.post("/x", b"{}")).read(6, cut=True) == BODY[:6]
