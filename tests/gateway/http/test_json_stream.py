"""JSON documents that are streamed through a real socket."""

import asyncio
import json
from collections.abc import Iterator

import pytest
from aiohttp import web

from gateway.http import json_stream
from gateway.http.json_stream import json_list, stream_json
from tests.gateway.http.test_connections import serving


def test_the_pieces_of_a_list_form_a_list() -> None:
    for items in ([], [1], [{"a": "é"}, None, [2]]):
        assert json.loads(b"{" + b"".join(json_list("data", items)) + b"}") == {"data": items}


async def test_a_client_that_does_not_read_occupies_one_chunk_and_is_disconnected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(json_stream, "DOCUMENT_SECONDS", 0.3)
    count = 0
    ended = asyncio.Event()

    def pieces() -> Iterator[bytes]:
        nonlocal count
        for _ in range(100_000):
            count += 1
            yield b"x" * 1000

    async def handler(request: web.Request) -> web.StreamResponse:
        try:
            return await stream_json(request, pieces())
        finally:
            ended.set()

    async with serving(handler) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        async with asyncio.timeout(10):
            await ended.wait()
        assert count < 20_000, "the buffers of the sockets, and a chunk"
        writer.close()


async def test_a_long_document_does_not_block_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "_SLICE_SECONDS", 0.0)
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def handler(request: web.Request) -> web.StreamResponse:
        return await stream_json(request, (b"1" for _ in range(500)))

    async with serving(handler) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        task = asyncio.create_task(count_turns())
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        async with asyncio.timeout(10):
            answer = await reader.read()
        task.cancel()
        writer.close()
    assert b"1" * 500 in answer
    assert turns > 500


async def test_an_answer_to_head_has_no_body() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return await stream_json(request, [b"[", b"1]"])

    async with serving(handler) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(2):  # on one connection: the second answer begins where the first one ends
            writer.write(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
            async with asyncio.timeout(10):
                head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        async with asyncio.timeout(10):
            assert b"[1]" in await reader.read()
        writer.close()
