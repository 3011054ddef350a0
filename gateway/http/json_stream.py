"""Stream JSON documents of any size, as fast as the client reads them."""

import asyncio
import time
from collections.abc import Iterable, Iterator
from typing import Any

from aiohttp import hdrs, web

from gateway.http.slow_client import DOCUMENT_SECONDS, wait_written
from gateway.http.sse import REQUEST_ID
from gateway.runtime.json_codec import encode_json

SINGLE_RESPONSE = web.RequestKey("single_response", bool)
"""Set on a request whose answer must be one response: the gateway merges it with answers of other members."""

_CHUNK_BYTES = 64 << 10
"""Size of the pieces that are written, in bytes. The next piece is serialized once the client has read enough."""

_SLICE_SECONDS = 0.005
"""Time after which other tasks of the event loop get a turn, in seconds."""


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
    if request.method == hdrs.METH_HEAD:  # a body would be read as the answer to the connection's next request
        await response.write_eof()
        return response
    chunk = bytearray()
    began = time.monotonic()
    for piece in pieces:
        chunk += piece
        if len(chunk) >= _CHUNK_BYTES:
            await wait_written(request, _write_chunks(response, bytes(chunk)), DOCUMENT_SECONDS)
            chunk.clear()
        if time.monotonic() - began > _SLICE_SECONDS:
            await asyncio.sleep(0)
            began = time.monotonic()
    await wait_written(request, _write_chunks(response, bytes(chunk)), DOCUMENT_SECONDS)
    await response.write_eof()
    return response


async def _write_chunks(response: web.StreamResponse, data: bytes) -> None:
    for start in range(0, len(data), _CHUNK_BYTES):
        await response.write(data[start : start + _CHUNK_BYTES])
