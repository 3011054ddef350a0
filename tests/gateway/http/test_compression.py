"""gateway/http/compression.py: large answers are compressed for clients that accept it."""

import gzip

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from gateway.http.middleware.errors import errors

LARGE = b"large " * 1_000


async def answer(path: str, accepted: str | None) -> tuple[aiohttp.ClientResponse, bytes]:
    """Return an answer as it was sent, without decompression."""

    async def whole(request: web.Request) -> web.StreamResponse:
        return web.Response(body=LARGE[: int(request.match_info["length"])])

    async def streamed(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(LARGE)
        return response

    app = web.Application(middlewares=[errors])
    app.add_routes([web.get("/whole/{length}", whole), web.get("/stream", streamed)])
    headers = {} if accepted is None else {"Accept-Encoding": accepted}
    async with (
        TestServer(app) as server,
        aiohttp.ClientSession(auto_decompress=False, skip_auto_headers=["Accept-Encoding"]) as http,
        http.get(server.make_url(path), headers=headers) as response,
    ):
        return response, await response.read()


@pytest.mark.parametrize(
    ("accepted", "compressed"),
    [
        (None, False),
        ("", False),
        ("identity", False),
        ("gzip", True),
        ("GZIP", True),
        ("*", True),
        ("br, gzip;q=0.5", True),
        ("gzip;q=1", True),
        ("gzip; q=0", False),
        ("gzip;q=0.000", False),
        ("gzip;q=0, *", False),
        ("xgzip", False),
    ],
)
async def test_the_client_decides(accepted: str | None, compressed: bool) -> None:
    response, body = await answer("/whole/6000", accepted)
    assert (response.headers.get("Content-Encoding") == "gzip") == compressed
    assert (gzip.decompress(body) if compressed else body) == LARGE
    assert response.headers["Vary"] == "Accept-Encoding", "for caches, whether it was compressed or not"


@pytest.mark.parametrize(("length", "compressed"), [(0, False), (2047, False), (2048, True)])
async def test_small_answers_stay_as_they_are(length: int, compressed: bool) -> None:
    response, _ = await answer(f"/whole/{length}", "gzip")
    assert ("Content-Encoding" in response.headers) == compressed
    assert ("Vary" in response.headers) == compressed


async def test_streams_stay_as_they_are() -> None:
    response, body = await answer("/stream", "gzip")
    assert "Content-Encoding" not in response.headers
    assert body == LARGE
