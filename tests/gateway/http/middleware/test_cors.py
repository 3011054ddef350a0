"""gateway/http/middleware/cors.py: pages of allowed origins may read answers."""

from collections.abc import Collection, Mapping

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from gateway.http.middleware.cors import cors_headers
from gateway.http.middleware.errors import errors

PAGE = "https://page.example"


async def headers_of(origins: Collection[str], method: str, **headers: str) -> Mapping[str, str]:
    async def greet(request: web.Request) -> web.StreamResponse:
        return web.Response(text="hello")

    app = web.Application(middlewares=[errors])
    app.on_response_prepare.append(cors_headers(origins))
    app.add_routes([web.get("/", greet), web.post("/", greet)])
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with TestClient(TestServer(app)) as client, client.request(method, "/", headers=named) as response:
        return response.headers


@pytest.mark.parametrize(
    ("origins", "origin", "allowed"),
    [
        ([PAGE], PAGE, PAGE),
        ([PAGE, "https://b.example"], "https://b.example", "https://b.example"),
        ([PAGE], "https://other.example", None),
        ([PAGE], f"{PAGE}.evil.example", None),
        ([PAGE], "null", None),
        (["*"], "https://any.example", "*"),
    ],
)
async def test_only_allowed_origins_are_named(origins: list[str], origin: str, allowed: str | None) -> None:
    headers = await headers_of(origins, "GET", Origin=origin)
    assert headers.get("Access-Control-Allow-Origin") == allowed
    assert headers.get("Vary") == (None if "*" in origins else "Origin"), "a cache may keep it for all origins with *"
    assert ("Access-Control-Expose-Headers" in headers) == (allowed is not None)


async def test_a_request_without_an_origin_gets_no_permission() -> None:
    headers = await headers_of([PAGE], "GET")
    assert not any(name.startswith("Access-Control") for name in headers)
    assert headers["Vary"] == "Origin"


async def test_a_preflight_lists_methods_and_the_requested_headers() -> None:
    asked = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "authorization,x-session-id"}
    headers = await headers_of([PAGE], "OPTIONS", Origin=PAGE, **asked)
    assert headers["Access-Control-Allow-Methods"] == "GET, HEAD, OPTIONS, POST"
    assert headers["Access-Control-Allow-Headers"] == "authorization,x-session-id"
    assert int(headers["Access-Control-Max-Age"]) > 0
    refused = await headers_of([PAGE], "OPTIONS", Origin="https://other.example", **asked)
    assert not any(name.startswith("Access-Control") for name in refused)


async def test_plain_options_is_no_preflight() -> None:
    headers = await headers_of([PAGE], "OPTIONS", Origin=PAGE)
    assert "Access-Control-Allow-Methods" not in headers
    assert headers["Allow"] == "GET, HEAD, OPTIONS, POST"
