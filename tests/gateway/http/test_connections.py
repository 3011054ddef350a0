"""Time limits and numbers of connections, through real sockets."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from compat.openai import SessionRequest
from gateway.graph.limits import SharedLimit
from gateway.http import connections
from gateway.http import json_body as bodies
from gateway.http.connections import Runner
from gateway.http.json_body import json_response, read_body, read_json
from gateway.http.middleware.errors import errors

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
BODIES = SharedLimit(1000, several=False)
"""Limit of large bodies in progress, in bytes."""
HEAD = b"POST / HTTP/1.1\r\nHost: x\r\n"


@asynccontextmanager
async def serving(handler: Handler | None = None) -> AsyncIterator[int]:
    """Start a server with one path and yield its port. It answers POST, and with a handler also GET and HEAD."""

    async def read(request: web.Request) -> web.Response:
        body = await read_json(request, SessionRequest)
        return json_response({"id": body.id})

    app = web.Application(middlewares=[errors], client_max_size=1000)
    app[bodies.BODY_BYTES_LIMIT] = BODIES
    app.router.add_post("/", handler or read)
    if handler is not None:
        app.router.add_get("/", handler)
    runner = Runner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def talk(port: int, *pieces: bytes | float) -> bytes:
    """Send the pieces, with pauses in seconds between them, and return all bytes of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            if isinstance(piece, bytes):
                writer.write(piece)
            else:
                await asyncio.sleep(piece)
        async with asyncio.timeout(10):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


def error_of(answer: bytes) -> tuple[int, str]:
    """Return the status and the error code of an answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


@pytest.mark.parametrize("begun", [b"", HEAD, b"POST", HEAD + b"X: " + b"y" * 1000])
async def test_incomplete_headers_time_out(begun: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.1)
    async with serving() as port:
        assert await talk(port, begun) == b""


async def test_headers_of_later_requests_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.2)
    async with serving() as port:
        whole = HEAD + b"Content-Length: 2\r\n\r\n{}"
        answer = await talk(port, whole, 0.3, whole, 0.05, HEAD)
        assert answer.count(b"200 OK") == 2, "an idle connection stays open, one with incomplete headers does not"


async def test_an_incomplete_body_gets_status_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.1)
    monkeypatch.setattr(connections, "LINGER_SECONDS", 0.1)
    async with serving() as port:
        answer = await talk(port, HEAD + b"Content-Length: 50\r\n\r\n{")
        assert error_of(answer) == (408, "request_timeout")


async def test_a_body_over_the_limit_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "LINGER_SECONDS", 0.1)
    async with serving() as port:
        answer = await talk(port, HEAD + b"Content-Length: 1001\r\nConnection: close\r\n\r\n")
        assert error_of(answer) == (413, "too_large")
        answer = await talk(
            port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"3e8\r\n" + b"x" * 1000 + b"\r\n" + b"1\r\nx\r\n"
        )
        assert error_of(answer) == (413, "too_large"), "without a length, it is refused once it exceeds the limit"


async def test_connections_are_limited_and_idle_ones_are_closed_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections.resource, "getrlimit", lambda which: (8, 8))
    release = asyncio.Event()

    async def slow(request: web.Request) -> web.Response:
        await release.wait()
        return web.Response(text="here")

    whole = HEAD + b"Connection: close\r\nContent-Length: 2\r\n\r\n{}"
    async with serving(slow) as port:
        busy = [asyncio.create_task(talk(port, whole)) for _ in range(3)]
        await asyncio.sleep(0.1)
        idle = asyncio.create_task(talk(port))
        await asyncio.sleep(0.05)
        late = asyncio.create_task(talk(port, whole))
        assert await idle == b"", "closed for a new connection"
        assert await talk(port, whole) == b"", "no other connection is idle"
        release.set()
        async with asyncio.timeout(5):
            assert all(answer.endswith(b"here") for answer in await asyncio.gather(*busy, late))


@pytest.mark.parametrize("encoding", ["known", "chunked", "compressed"])
async def test_large_bodies_in_progress_are_limited(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "_LARGE_BYTES", 100)
    compressed = gzip.compress(b"x" * 500)
    release = asyncio.Event()

    async def slow(request: web.Request) -> web.Response:
        await read_body(request)
        await release.wait()
        return web.Response(text="here")

    parts = {
        "known": b"Content-Length: 500\r\n\r\n" + b"x" * 500,
        "chunked": b"Transfer-Encoding: chunked\r\n\r\n1f4\r\n" + b"x" * 500 + b"\r\n0\r\n\r\n",
        "compressed": b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b" % (len(compressed), compressed),
    }
    large = HEAD + b"Connection: close\r\n" + parts[encoding]
    small = HEAD + b"Connection: close\r\nContent-Length: 2\r\n\r\n{}"
    async with serving(slow) as port:
        first = [asyncio.create_task(talk(port, large)) for _ in range(2)]
        while BODIES.amount("") < 1000:
            await asyncio.sleep(0.01)
        assert error_of(await talk(port, large)) == (429, "overloaded")
        unaffected = asyncio.create_task(talk(port, small))
        await asyncio.sleep(0.05)
        release.set()
        async with asyncio.timeout(10):
            answers = await asyncio.gather(*first, unaffected)
            assert all(answer.endswith(b"here") for answer in answers)
            assert (await talk(port, large)).endswith(b"here")
            while BODIES.amount(""):
                await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x02", b"GET /\xed\xa0\x80 HTTP/1.1\r\n\r\n", b"POST / HTTP/9\r\n\r\n", b"a: b\r\n\r\n"]
)
async def test_invalid_http_gets_an_error_without_a_traceback(data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as port:
        assert error_of(await talk(port, data)) == (400, "invalid_http")
    assert not caplog.records


async def test_a_body_that_cannot_be_decompressed_is_refused_without_a_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving() as port:
        answer = await talk(port, HEAD + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd")
        assert error_of(answer) == (400, "invalid_json")
    assert not caplog.records


async def test_a_half_closed_connection_gets_its_answer_and_a_disconnect_is_noticed() -> None:
    ends: asyncio.Queue[str] = asyncio.Queue()

    async def slow(request: web.Request) -> web.Response:
        await request.read()
        try:
            await asyncio.sleep(0.3)
        except asyncio.CancelledError:
            ends.put_nowait("left")
            raise
        ends.put_nowait("answered")
        return web.Response(text="here")

    async with serving(slow) as port:
        for disconnects in (False, True):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HEAD + b"Content-Length: 2\r\n\r\n{}")
            await asyncio.sleep(0.05)
            if disconnects:
                writer.close()
            else:
                writer.write_eof()
            async with asyncio.timeout(5):
                assert await ends.get() == ("left" if disconnects else "answered")
                if not disconnects:
                    assert (await reader.read()).endswith(b"here")
            writer.close()
