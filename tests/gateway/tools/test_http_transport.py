"""Tests of gateway/tools/http_transport.py: hostile servers over HTTP, one behaviour each."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import psutil
import pytest
from aiohttp import web

from gateway.config.url_pattern import parse_url_pattern
from gateway.tools.protocol import PROTOCOL_ERROR, TIMEOUT, TOO_LARGE, UNAVAILABLE, ToolFailed
from tests.fakes.tool_servers import RunningToolServers, table

pytestmark = pytest.mark.waits
MEMORY = 160 << 20
"""Growth of the test's process that no server may cause, in bytes."""
Act = Callable[[web.Request, Any], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def server(act: Act, stream: Act | None = None) -> AsyncIterator[str]:
    """Run a server of the protocol of 2025-11-25 whose tool `act` shows a behaviour. Yield its URL."""
    sessions = set[str]()

    async def post(request: web.Request) -> web.StreamResponse:
        message = await request.json()
        id, method = message.get("id"), message.get("method")
        if method == "initialize":
            session = f"s{len(sessions)}"
            sessions.add(session)
            info = {"name": "hostile", "version": "1"}
            result: Any = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": info}
            answer = {"jsonrpc": "2.0", "id": id, "result": result}
            return web.json_response(answer, headers={"mcp-session-id": session})
        if id is None:
            return web.Response(status=202)
        if method == "server/discover":
            return web.Response(status=400)
        if request.headers.get("mcp-session-id") not in sessions:
            return web.Response(status=404)
        if method == "tools/list":
            tools = [{"name": name, "inputSchema": {"type": "object"}} for name in ("act", "fine", "forget")]
            return web.json_response({"jsonrpc": "2.0", "id": id, "result": {"tools": tools}})
        if message["params"]["name"] == "act":
            return await act(request, id)
        if message["params"]["name"] == "forget":
            sessions.clear()
            return web.Response(status=404)
        return web.json_response(answer_of(id, "fine"))

    async def get(request: web.Request) -> web.StreamResponse:
        return web.Response(status=405) if stream is None else await stream(request, None)

    async def delete(request: web.Request) -> web.StreamResponse:
        return web.Response(status=204)

    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/mcp", post)
    app.router.add_get("/mcp", get)
    app.router.add_delete("/mcp", delete)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/mcp"
    finally:
        await runner.cleanup()


def answer_of(id: Any, text: str = "done") -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id, "result": {"content": [{"type": "text", "text": text}]}}


async def events(request: web.Request, kind: str = "text/event-stream") -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": kind})
    await response.prepare(request)
    return response


async def send_event(response: web.StreamResponse, message: Any) -> None:
    await response.write(b"event: message\ndata: " + json.dumps(message).encode() + b"\n\n")


NOTE = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": "x"}}


async def gigabyte(request: web.Request, id: Any) -> web.StreamResponse:
    response = await events(request, "application/json")
    for _ in range(1 << 14):
        await response.write(b" " * 65_536)
    return response


async def gigabyte_event(request: web.Request, id: Any) -> web.StreamResponse:
    response = await events(request)
    await response.write(b"data: ")
    for _ in range(1 << 14):
        await response.write(b"x" * 65_536)
    return response


async def bomb(request: web.Request, id: Any) -> web.StreamResponse:
    body = gzip.compress(json.dumps(answer_of(id, "x" * 50_000_000)).encode())
    return web.Response(body=body, headers={"content-encoding": "gzip", "content-type": "application/json"})


async def flood(request: web.Request, id: Any) -> web.StreamResponse:
    response = await events(request)
    while True:
        await send_event(response, NOTE)


async def silent(request: web.Request, id: Any) -> web.StreamResponse:
    await asyncio.sleep(3600)
    return web.Response()


async def silent_stream(request: web.Request, id: Any) -> web.StreamResponse:
    await events(request)
    return await silent(request, id)


async def breaks_off(request: web.Request, id: Any) -> web.StreamResponse:
    response = await events(request)
    await response.write(b"id: 7\nretry: 0\ndata:\n\n")
    return response


async def hangs_up(request: web.Request, id: Any) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def redirects(request: web.Request, id: Any) -> web.StreamResponse:
    return web.Response(status=307, headers={"location": "http://127.0.0.1:1/secret"})


async def redirects_nearby(request: web.Request, id: Any) -> web.StreamResponse:
    return web.Response(status=307, headers={"location": "/admin"})


async def plain_text(request: web.Request, id: Any) -> web.StreamResponse:
    return web.Response(text="hello")


async def no_json(request: web.Request, id: Any) -> web.StreamResponse:
    return web.Response(text="<html>", content_type="application/json")


async def other_id(request: web.Request, id: Any) -> web.StreamResponse:
    return web.json_response(answer_of(id + 1))


async def unauthorised(request: web.Request, id: Any) -> web.StreamResponse:
    return web.Response(status=401, text="x" * 1_000_000)


async def error_with_status(request: web.Request, id: Any) -> web.StreamResponse:
    body = {"jsonrpc": "2.0", "id": None, "error": {"code": -32602, "message": "no\nsuch thing"}}
    return web.json_response(body, status=400)


async def accepted(request: web.Request, id: Any) -> web.StreamResponse:
    return web.Response(status=202)


async def surrogate(request: web.Request, id: Any) -> web.StreamResponse:
    response = await events(request)
    await response.write(b"data: " + json.dumps(answer_of(id, "a\ud800b")).encode() + b"\n\n")
    return response


async def notes_then_answer(request: web.Request, id: Any) -> web.StreamResponse:
    response = await events(request)
    for _ in range(100):
        await send_event(response, NOTE)
    await send_event(response, answer_of(id))
    return response


@pytest.mark.parametrize(
    ("act", "code", "reason"),
    [
        (gigabyte, TOO_LARGE, "a message of more than"),
        (gigabyte_event, TOO_LARGE, ""),
        (bomb, PROTOCOL_ERROR, "compressed"),
        (silent, TIMEOUT, "within 1.5 s"),
        (silent_stream, TIMEOUT, "within 1.5 s"),
        (flood, None, ""),
        (breaks_off, UNAVAILABLE, "broke off"),
        (hangs_up, UNAVAILABLE, ""),
        (redirects, UNAVAILABLE, "redirects to http://127.0.0.1:1/secret"),
        (redirects_nearby, UNAVAILABLE, "redirects to /admin"),
        (plain_text, PROTOCOL_ERROR, "content of type text/plain"),
        (no_json, PROTOCOL_ERROR, "not JSON"),
        (other_id, PROTOCOL_ERROR, "another request"),
        (unauthorised, UNAVAILABLE, "HTTP status 401"),
        (error_with_status, PROTOCOL_ERROR, "error -32602: no such thing"),
        (accepted, PROTOCOL_ERROR, ""),
    ],
)
async def test_a_bad_answer_fails_its_call_alone(act: Act, code: str | None, reason: str) -> None:
    before = psutil.Process().memory_info().rss
    async with server(act) as url, RunningToolServers(h=table(url=url, seconds=1.5)) as servers:
        await servers.describe("h")
        with pytest.raises(ToolFailed) as caught:
            await servers.text("h", "act")
        assert caught.value.code in ((code,) if code is not None else (TIMEOUT, TOO_LARGE))
        assert str(caught.value).startswith("tool act of server h: ")
        assert reason in str(caught.value)
        assert str(caught.value).isprintable()
        assert await servers.text("h", "fine") == "fine"
    assert psutil.Process().memory_info().rss - before < MEMORY


@pytest.mark.parametrize(("act", "text"), [(surrogate, "a�b"), (notes_then_answer, "done")])
async def test_an_answer_arrives(act: Act, text: str) -> None:
    async with server(act) as url, RunningToolServers(h=table(url=url)) as servers:
        assert await servers.text("h", "act") == text


async def test_a_forgotten_session_is_made_again() -> None:
    async with server(accepted) as url, RunningToolServers(h=table(url=url)) as servers:
        with pytest.raises(ToolFailed):
            await servers.text("h", "forget")
        assert await servers.text("h", "fine") == "fine"


async def test_a_flood_of_notifications_blocks_no_call() -> None:
    async with server(accepted, flood) as url, RunningToolServers(h=table(url=url)) as servers:
        for _ in range(20):
            assert await servers.text("h", "fine") == "fine"
            await asyncio.sleep(0.02)


async def test_a_stream_of_notifications_is_not_opened_in_a_hot_loop() -> None:
    opened = 0

    async def closes(request: web.Request, id: Any) -> web.StreamResponse:
        nonlocal opened
        opened += 1
        response = await events(request)
        await response.write(b"id: 1\nretry: 0\ndata:\n\n")
        return response

    async with server(accepted, closes) as url, RunningToolServers(h=table(url=url)) as servers:
        await servers.describe("h")
        await asyncio.sleep(1.5)
        assert opened <= 3


async def test_private_addresses_need_a_pattern_that_names_them() -> None:
    async with server(accepted) as url:
        port = url.rsplit(":", 1)[1].split("/")[0]
        wide, exact = parse_url_pattern(f"http://*:{port}/*"), parse_url_pattern(url)
        async with RunningToolServers(wide, exact) as servers:
            name = await servers.open_url(url, {}, tenant="a")
            assert await servers.text(name, "fine") == "fine"
            name = await servers.open_url(url.replace("127.0.0.1", "localhost"), {}, tenant="a")
            with pytest.raises(ToolFailed, match="not on the public internet") as caught:
                await servers.describe(name)
            assert caught.value.code == UNAVAILABLE
