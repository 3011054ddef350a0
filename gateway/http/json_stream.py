"""JSON documents of any size, written as fast as their client reads them."""

import asyncio
import time
from collections.abc import Iterable, Iterator
from typing import Any

from aiohttp import web

from gateway.http.bodies import encode_json
from gateway.http.sse import REQUEST_ID, SlowReader

_CHUNK_BYTES = 64 << 10
"""Bytes that are made before the client has read what was written so far."""

_SLICE_SECONDS = 0.005
"""Seconds for which pieces are made without a turn for others."""

_READER_SECONDS = 60.0
"""Longest time in seconds in which a client reads nothing of what is written to it."""


def json_list(name: str, items: Iterable[Any]) -> Iterator[bytes]:
    """Yield a member of an object whose value is a list, in pieces: `"name":[…]`."""
    yield b'"%b":[' % name.encode()
    for number, item in enumerate(items):
        yield (b"," if number else b"") + encode_json(item)
    yield b"]"


async def stream_json(request: web.Request, pieces: Iterable[bytes]) -> web.StreamResponse:
    """Answer with a document whose pieces are made while it is written.

    A client that reads slowly, or not at all, holds one chunk in memory, and not the document. Raises SlowReader if it
    reads nothing for too long.
    """
    response = web.StreamResponse(
        headers={"Content-Type": "application/json; charset=utf-8", "x-request-id": request[REQUEST_ID]}
    )
    await response.prepare(request)
    chunk = bytearray()
    began = time.monotonic()
    for piece in pieces:
        chunk += piece
        if len(chunk) >= _CHUNK_BYTES:
            await _write(request, response, bytes(chunk))
            chunk.clear()
        if time.monotonic() - began > _SLICE_SECONDS:
            await asyncio.sleep(0)
            began = time.monotonic()
    await _write(request, response, bytes(chunk))
    await response.write_eof()
    return response


async def _write(request: web.Request, response: web.StreamResponse, data: bytes) -> None:
    try:
        async with asyncio.timeout(_READER_SECONDS):
            for begin in range(0, len(data), _CHUNK_BYTES):
                await response.write(data[begin : begin + _CHUNK_BYTES])
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
        raise SlowReader(f"the client has read nothing for {_READER_SECONDS:g} s") from None
