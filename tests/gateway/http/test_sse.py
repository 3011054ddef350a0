"""Event streams: heartbeats while there are no events."""

import asyncio
import time

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer, make_mocked_request
from openai._streaming import SSEDecoder

from gateway.http import sse
from gateway.http.sse import (
    HEARTBEAT,
    HEARTBEAT_WITH_IDS,
    REQUEST_ID,
    EventStream,
    named_event,
    unnamed_events,
)


async def test_heartbeats_interrupt_waits_without_losing_events(monkeypatch: pytest.MonkeyPatch) -> None:
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
        while word := await stream.with_heartbeats(wait, 0.01):
            await stream.write(unnamed_events(word))
        return await stream.end()

    app = web.Application()
    app.router.add_get("/", handler)
    async with TestClient(TestServer(app)) as client:
        text = await (await client.get("/")).text()
    assert text == ": waiting\n\n" * 3 + 'data: "one"\n\ndata: "two"\n\ndata: [DONE]\n\n'


async def test_a_stream_may_have_heartbeats_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "HEARTBEAT_SECONDS", 0.02)
    numbers = iter(range(10))
    beats = 0

    async def wait() -> None:
        nonlocal beats
        beats += 1
        await asyncio.sleep(60 if beats < 3 else 0)

    async def handler(request: web.Request) -> web.StreamResponse:
        request[REQUEST_ID] = "r"
        stream = EventStream(request, lambda: b"event: %d\n\n" % next(numbers))
        await stream.with_heartbeats(wait, 0.01)
        return await stream.end(done=False)

    app = web.Application()
    app.router.add_get("/", handler)
    async with TestClient(TestServer(app)) as client:
        assert await (await client.get("/")).text() == "event: 0\n\nevent: 1\n\n"


async def test_a_cancelled_wait_is_not_repeated() -> None:
    # also if the timer fires in the same turn of the event loop
    request = make_mocked_request("GET", "/")
    request[REQUEST_ID] = "r"
    for seconds in (10.0, 0.01):
        stream = EventStream(request)
        waits = 0

        async def wait() -> None:
            nonlocal waits
            waits += 1
            await asyncio.Event().wait()

        waiting = asyncio.create_task(stream.with_heartbeats(wait, seconds))
        await asyncio.sleep(0)
        time.sleep(0.02)  # noqa: ASYNC251 - the timer fires within this time, in the same turn of the loop
        asyncio.get_running_loop().call_soon(waiting.cancel)
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert waits == 1
        assert stream._timer is None


def test_heartbeats_are_no_events_for_openai_s_client() -> None:
    streams = {
        HEARTBEAT: unnamed_events("one") + HEARTBEAT + unnamed_events("two"),
        HEARTBEAT_WITH_IDS: named_event("x", "one", 1) + 2 * HEARTBEAT_WITH_IDS + named_event("x", "two", 2),
    }
    for stream in streams.values():
        assert [event.json() for event in SSEDecoder().iter_bytes(iter([stream]))] == ["one", "two"]
