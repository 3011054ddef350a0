"""Stream JSON documents of any size, as fast as the client reads them."""

import asyncio
import time
from collections.abc import Iterable, Iterator
from typing import Any

from aiohttp import web

from gateway.http.json_body import encode_json
from gateway.http.sse import REQUEST_ID, SlowClient

SINGLE_RESPONSE = web.RequestKey("whole_answer", bool)
"""Set on a request whose answer must be one response: the gateway merges it with answers of other members."""

_CHUNK_BYTES = 64 << 10
"""Size of the pieces that are written, in bytes. The next piece is serialized once the client has read enough."""

_SLICE_SECONDS = 0.005
"""Time after which other tasks of the event loop get a turn, in seconds."""

_READER_SECONDS = 60.0
"""Longest time in which a client reads nothing, in seconds."""


def json_list(name: str, items: Iterable[Any]) -> Iterator[bytes]:
    """Yield a member of an object whose value is a list, in pieces: `"name":[…]`."""
    yield b'"%b":[' % name.encode()
    for number, item in enumerate(items):
        yield (b"," if number else b"") + encode_json(item)
    yield b"]"


async def stream_json(request: web.Request, pieces: Iterable[bytes]) -> web.StreamResponse:
    """Answer with a document whose pieces are serialized while it is written.

    For a client that reads slowly, the server holds only one chunk in memory, not the whole document. Raises SlowClient
    if the client reads nothing for too long.
    """
    if request.get(SINGLE_RESPONSE, False):
        return web.Response(body=b"".join(pieces), content_type="application/json")
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
        raise SlowClient(f"the client has read nothing for {_READER_SECONDS:g} s") from None
