"""gateway/api/stream_writer.py: events of growing values reach a client over a real connection, written from the producer's callback."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient, TestServer

from gateway.api.stream_writer import StreamWriter
from gateway.graph.call import Call
from gateway.graph.variable import Piece, Reader, Variable
from gateway.http import sse
from gateway.http.sse import REQUEST_ID, EventStream, unnamed_events


class Odd(Exception):
    """Error that the serializer raises."""


@dataclass
class Told:
    """A stream of some variables to one client. `failed`: what the request ended with."""

    variables: Sequence[Variable]
    readers: Sequence[Callable[[], Reader]]
    first: float = 5.0
    wrong_at: str | None = None
    """The text, or the value's whole text, that the teller trips over."""
    failed: BaseException | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def piece_events(self, index: int, pieces: Sequence[Piece]) -> bytes:
        text = "".join(piece.text for piece in pieces)
        if text == self.wrong_at:
            raise Odd(text)
        return unnamed_events([index, text])

    def end_events(self, index: int) -> bytes:
        if self.variables[index].text == self.wrong_at:
            raise Odd(self.wrong_at)
        return unnamed_events([index, None])

    async def serve(self, request: web.Request) -> web.StreamResponse:
        request[REQUEST_ID] = "r"
        stream = EventStream(request)
        try:
            return await stream.end(await StreamWriter(stream, self, self.first).run([read() for read in self.readers]))
        except Odd:
            return await stream.end(unnamed_events("odd"))
        except BaseException as error:
            self.failed = error
            raise
        finally:
            self.over.set()


def made(count: int = 1) -> list[Variable]:
    """Variables that somebody makes."""
    variables = [Variable(f"v{at}") for at in range(count)]
    for variable in variables:
        variable.bind_producer(_PRODUCER)
    return variables


class _Producer(Call):
    def __init__(self) -> None:
        """Make a call without a session."""


_PRODUCER = _Producer()


async def event(response: ClientResponse) -> bytes:
    """Return the next event."""
    return await response.content.readuntil(b"\n\n")


@asynccontextmanager
async def asked(told: Told) -> AsyncIterator[ClientResponse]:
    app = web.Application()
    app.router.add_get("/", told.serve)
    async with TestClient(TestServer(app)) as client:
        asking = asyncio.ensure_future(client.get("/"))
        while not all(variable._watchers for variable in told.variables):
            await asyncio.sleep(0.001)
        for variable in told.variables:  # the status line comes with the first of it
            variable.append(Piece("."))
        async with await asking as response:
            assert await event(response)
            yield response


async def test_each_piece_is_written_at_once_and_the_end_with_the_last() -> None:
    [variable] = made()
    async with asked(Told([variable], [variable.read])) as response:
        for text in ("one", "two"):
            variable.append(Piece(text))
            assert await response.content.readany() == b'data: [0,"%s"]\n\n' % text.encode()
        variable.append(Piece("three"))
        variable.append(Piece("four"))
        variable.complete()
        assert await response.content.read() == b'data: [0,"threefour"]\n\ndata: [0,null]\n\ndata: [DONE]\n\n'
    assert not variable._watchers


async def test_a_client_of_http_1_0_gets_no_chunks() -> None:
    [variable] = made()
    app = web.Application()
    app.router.add_get("/", Told([variable], [variable.read]).serve)
    async with TestServer(app) as server:
        reader, writer = await asyncio.open_connection(server.host, server.port)
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        while not variable._watchers:
            await asyncio.sleep(0.001)
        variable.append(Piece("one"))
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"chunked" not in head.lower()
        for text in ("two", "three"):
            await reader.readuntil(b"\n\n")
            variable.append(Piece(text))
        variable.complete()
        assert await reader.read() == b'data: [0,"three"]\n\ndata: [0,null]\n\ndata: [DONE]\n\n'
        writer.close()


async def test_no_task_wakes_for_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    [variable] = made()
    written = 0

    async def write(stream: EventStream, data: bytes) -> None:
        nonlocal written
        written += 1
        await original(stream, data)

    original = EventStream.write
    monkeypatch.setattr(EventStream, "write", write)
    async with asked(Told([variable], [variable.read])) as response:
        for _ in range(50):
            variable.append(Piece("x"))
            await event(response)
    assert written == 1, "only the first, with the status line"


async def test_several_values_are_streamed_as_they_grow() -> None:
    first, second = made(2)
    async with asked(Told([first, second], [first.read, second.read])) as response:
        await event(response)
        second.append(Piece("a"))
        assert await event(response) == b'data: [1,"a"]\n\n'
        second.complete()
        assert await event(response) == b"data: [1,null]\n\n"
        first.append(Piece("b"))
        assert await event(response) == b'data: [0,"b"]\n\n'
        first.complete()
        assert await response.content.read() == b"data: [0,null]\n\ndata: [DONE]\n\n"


@pytest.mark.parametrize(("count", "size", "together"), [(2_000, 9_000, 50), (16_000, 1_000, 1)])
async def test_a_client_that_reads_slowly_gets_all_of_it_once(count: int, size: int, together: int) -> None:
    [variable] = made()
    async with asked(Told([variable], [variable.read])) as response:
        for at in range(count):
            variable.append(Piece(f"<{at}>" + size * "x"))
            if at % together == 0:
                await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0.01)
            variable.append(Piece("late"))
        variable.complete()
        text = (await response.content.read()).decode()
    numbers = [int(part.partition(">")[0]) for part in text.split("<")[1:]]
    assert numbers == list(range(count))
    assert text.count("late") == 20
    assert text.endswith("data: [0,null]\n\ndata: [DONE]\n\n")


async def test_heartbeats_are_written_only_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "HEARTBEAT_SECONDS", 1.0)
    [variable] = made()
    async with asked(Told([variable], [variable.read])) as response:
        for _ in range(16):
            variable.append(Piece("x"))
            await asyncio.sleep(0.1)
        assert await response.content.readany() == b'data: [0,"x"]\n\n' * 16
        async with asyncio.timeout(5):
            assert await response.content.readany() == b": waiting\n\n"
            variable.append(Piece("y"))
            assert await response.content.readany() == b'data: [0,"y"]\n\n'
            assert await response.content.readany() == b": waiting\n\n"


@pytest.mark.parametrize("at", ["wrong", ".rightwrong"])
async def test_an_error_is_written_after_the_pieces_before_it(at: str) -> None:
    [variable] = made()
    async with asked(Told([variable], [variable.read], wrong_at=at)) as response:
        variable.append(Piece("right"))
        await asyncio.sleep(0.01)
        variable.append(Piece("wrong"))
        variable.complete()
        text = await response.content.read()
    well = b'data: [0,"right"]\n\n' + (b'data: [0,"wrong"]\n\n' if at != "wrong" else b"")
    assert text == well + b'data: "odd"\n\ndata: [DONE]\n\n'


async def test_no_piece_is_written_before_the_exposure_is_stored() -> None:
    [variable] = made()
    kept = asyncio.Event()
    shown = 0

    async def expose(variable: Variable) -> None:
        nonlocal shown
        shown += 1
        await kept.wait()
        variable.exposure_persisted = True

    told = Told([variable], [lambda: variable.read(expose)], first=0.1)
    app = web.Application()
    app.router.add_get("/", told.serve)
    async with TestClient(TestServer(app)) as client:
        response = await client.get("/")
        assert await response.content.readany() == b": waiting\n\n"
        variable.append(Piece("a"))
        await asyncio.sleep(0.05)
        variable.append(Piece("b"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await response.content.readany()
        kept.set()
        assert await response.content.readany() == b'data: [0,"ab"]\n\n'
        variable.complete()
        assert await response.content.read() == b"data: [0,null]\n\ndata: [DONE]\n\n"
    assert shown == 1


async def test_nothing_is_written_to_a_client_that_has_left() -> None:
    [variable] = made()
    told = Told([variable], [variable.read])
    async with asked(told) as response:
        response.close()
        async with asyncio.timeout(5):
            await told.over.wait()
    assert isinstance(told.failed, asyncio.CancelledError)
    variable.append(Piece("x"))
    variable.complete()
    assert variable.value == ".x"
    assert not variable._watchers


async def test_repeated_waits_leave_no_watchers_behind() -> None:
    [variable] = made()
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await variable.wait_final()
    assert not variable._final_futures
