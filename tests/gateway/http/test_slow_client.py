"""Tests of gateway/http/slow_client.py: clients that do not read are disconnected."""

import asyncio
import time

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from gateway.http.slow_client import SlowClient, wait_written
from tests.gateway.http.test_connections import HEAD, serving


async def test_a_client_that_does_not_read_is_disconnected() -> None:
    found: asyncio.Future[tuple[BaseException, bool]] = asyncio.get_running_loop().create_future()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:  # until the buffers of the sockets are full
                await wait_written(request, response.write(b"x" * 1_000_000), 0.2)
        except Exception as error:
            found.set_result((error, request.transport is None or request.transport.is_closing()))
            raise

    async with serving(handler) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
        writer.write(HEAD + b"Content-Length: 0\r\n\r\n")
        async with asyncio.timeout(10):
            error, is_closing = await found
        assert isinstance(error, SlowClient)
        assert str(error) == "the client has read nothing for 0.2 s"
        assert is_closing, "the connection does not stay open with half a response"
        writer.close()


async def test_a_client_may_take_longer_for_all_data_than_for_one_write() -> None:
    seconds, took = 0.8, 0.0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal took
        response = web.StreamResponse()
        await response.prepare(request)
        began = time.monotonic()
        while took <= seconds:
            await wait_written(request, response.write(b"x" * 100_000), seconds)
            took = time.monotonic() - began
        return response

    async with serving(handler) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD + b"Content-Length: 0\r\nConnection: close\r\n\r\n")
        end = b""
        async with asyncio.timeout(30):
            while piece := await reader.read(1 << 20):
                end = (end + piece)[-5:]
                await asyncio.sleep(0.01)
        assert took > seconds
        assert end == b"0\r\n\r\n", "the response is complete"
        writer.close()


async def test_errors_of_the_write_itself_are_raised() -> None:
    async def write() -> None:
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError, match="gone"):
        await wait_written(make_mocked_request("GET", "/"), write(), 5.0)


async def test_a_cancelled_wait_is_no_slow_client() -> None:
    waiting = asyncio.create_task(wait_written(make_mocked_request("GET", "/"), asyncio.sleep(60), 5.0))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_request_whose_connection_is_gone_already() -> None:
    request = make_mocked_request("GET", "/")
    request._protocol.transport = None
    assert request.transport is None
    with pytest.raises(SlowClient):
        await wait_written(request, asyncio.sleep(60), 0.01)
