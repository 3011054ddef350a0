"""gateway/http/connections.py and the time limits of bodies, through real sockets."""

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
BOUND = SharedLimit(1000, several=False)
"""Of large bodies that are held."""
HEAD = b"POST / HTTP/1.1\r\nHost: x\r\n"


@asynccontextmanager
async def serving(handler: Handler | None = None) -> AsyncIterator[int]:
    """Start a server with one route and yield its port."""

    async def read(request: web.Request) -> web.Response:
        body = await read_json(request, SessionRequest)
        return json_response({"id": body.id})

    app = web.Application(middlewares=[errors], client_max_size=1000)
    app[bodies.BODIES_HELD] = BOUND
    app.router.add_post("/", handler or read)
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
async def test_headers_that_do_not_end_are_not_waited_for(begun: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.1)
    async with serving() as port:
        assert await talk(port, begun) == b""


async def test_later_requests_of_a_connection_have_the_same_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.2)
    async with serving() as port:
        whole = HEAD + b"Content-Length: 2\r\n\r\n{}"
        answer = await talk(port, whole, 0.3, whole, 0.05, HEAD)
        assert answer.count(b"200 OK") == 2, "an idle connection stays, one with half a request does not"


async def test_a_body_that_does_not_arrive_is_answered_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.1)
    monkeypatch.setattr(connections, "LINGER_SECONDS", 0.1)
    async with serving() as port:
        answer = await talk(port, HEAD + b"Content-Length: 50\r\n\r\n{")
        assert error_of(answer) == (408, "request_timeout")


async def test_a_body_over_the_bound_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "LINGER_SECONDS", 0.1)
    async with serving() as port:
        answer = await talk(port, HEAD + b"Content-Length: 1001\r\nConnection: close\r\n\r\n")
        assert error_of(answer) == (413, "too_large")
        answer = await talk(
            port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"3e8\r\n" + b"x" * 1000 + b"\r\n" + b"1\r\nx\r\n"
        )
        assert error_of(answer) == (413, "too_large"), "and where no length is given, once it is exceeded"


async def test_connections_are_bounded_and_idle_ones_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
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
        assert await idle == b"", "closed to make room"
        assert await talk(port, whole) == b"", "all others are busy"
        release.set()
        async with asyncio.timeout(5):
            assert all(answer.endswith(b"here") for answer in await asyncio.gather(*busy, late))


@pytest.mark.parametrize("how", ["known", "chunked", "packed"])
async def test_large_bodies_in_progress_are_bounded(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "_LARGE_BYTES", 100)
    packed = gzip.compress(b"x" * 500)
    release = asyncio.Event()

    async def slow(request: web.Request) -> web.Response:
        await read_body(request)
        await release.wait()
        return web.Response(text="here")

    parts = {
        "known": b"Content-Length: 500\r\n\r\n" + b"x" * 500,
        "chunked": b"Transfer-Encoding: chunked\r\n\r\n1f4\r\n" + b"x" * 500 + b"\r\n0\r\n\r\n",
        "packed": b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b" % (len(packed), packed),
    }
    large = HEAD + b"Connection: close\r\n" + parts[how]
    small = HEAD + b"Connection: close\r\nContent-Length: 2\r\n\r\n{}"
    async with serving(slow) as port:
        first = [asyncio.create_task(talk(port, large)) for _ in range(2)]
        while BOUND.held("") < 1000:
            await asyncio.sleep(0.01)
        assert error_of(await talk(port, large)) == (429, "overloaded")
        unhindered = asyncio.create_task(talk(port, small))
        await asyncio.sleep(0.05)
        release.set()
        async with asyncio.timeout(10):
            answers = await asyncio.gather(*first, unhindered)
            assert all(answer.endswith(b"here") for answer in answers)
            assert (await talk(port, large)).endswith(b"here")
            while BOUND.held(""):
                await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x02", b"GET /\xed\xa0\x80 HTTP/1.1\r\n\r\n", b"POST / HTTP/9\r\n\r\n", b"a: b\r\n\r\n"]
)
async def test_what_is_not_http_is_answered_without_a_traceback(data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as port:
        assert error_of(await talk(port, data)) == (400, "invalid_http")
    assert not caplog.records


async def test_a_body_that_cannot_be_unpacked_is_refused_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as port:
        answer = await talk(port, HEAD + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd")
        assert error_of(answer) == (400, "invalid_json")
    assert not caplog.records


async def test_a_client_that_closes_its_sending_half_is_answered_and_one_that_leaves_is_noticed() -> None:
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
        for leaves in (False, True):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HEAD + b"Content-Length: 2\r\n\r\n{}")
            await asyncio.sleep(0.05)
            if leaves:
                writer.close()
            else:
                writer.write_eof()
            async with asyncio.timeout(5):
                assert await ends.get() == ("left" if leaves else "answered")
                if not leaves:
                    assert (await reader.read()).endswith(b"here")
            writer.close()
