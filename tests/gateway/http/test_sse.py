"""gateway/http/sse.py: a stream that has nothing to say says that it is there."""

import asyncio
import time

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer, make_mocked_request

from gateway.http import sse
from gateway.http.sse import REQUEST_ID, EventStream, unnamed


async def test_silence_is_broken_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "HEARTBEAT_SECONDS", 0.02)
    words = iter(["one", "two"])

    async def more() -> str:
        await ready.wait()
        return next(words, "")

    ready = asyncio.Event()
    waits = 0

    async def wait() -> str:
        nonlocal waits
        waits += 1
        if waits == 4:
            ready.set()
        return await more()

    async def handler(request: web.Request) -> web.StreamResponse:
        request[REQUEST_ID] = "r"
        stream = EventStream(request)
        while word := await stream.patiently(wait, 0.01):
            await stream.write(unnamed(word))
        return await stream.end()

    app = web.Application()
    app.router.add_get("/", handler)
    async with TestClient(TestServer(app)) as client:
        text = await (await client.get("/")).text()
    assert text == ": waiting\n\n" * 3 + 'data: "one"\n\ndata: "two"\n\ndata: [DONE]\n\n'


async def test_a_wait_that_somebody_else_ends_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the alarm rings in the same moment."""
    request = make_mocked_request("GET", "/")
    request[REQUEST_ID] = "r"
    for alarm in (10.0, 0.01):
        stream = EventStream(request)
        waits = 0

        async def wait() -> None:
            nonlocal waits
            waits += 1
            await asyncio.Event().wait()

        waiting = asyncio.create_task(stream.patiently(wait, alarm))
        await asyncio.sleep(0)
        time.sleep(0.02)  # noqa: ASYNC251 - what rings within that does so in one turn of the loop
        asyncio.get_running_loop().call_soon(waiting.cancel)
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert waits == 1
        assert stream._alarm is None
