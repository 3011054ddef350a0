"""gateway/http/sse.py: a stream that has nothing to say says that it is there."""

import asyncio

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from gateway.http import sse
from gateway.http.sse import REQUEST_ID, EventStream


async def test_silence_is_broken_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "_HEARTBEAT_SECONDS", 0.02)
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
            await stream.data(word)
        return await stream.end()

    app = web.Application()
    app.router.add_get("/", handler)
    async with TestClient(TestServer(app)) as client:
        text = await (await client.get("/")).text()
    assert text == ": waiting\n\n" * 3 + 'data: "one"\n\ndata: "two"\n\ndata: [DONE]\n\n'
