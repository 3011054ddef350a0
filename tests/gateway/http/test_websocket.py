"""gateway/http/websocket.py: which requests become WebSockets, how many, and their end."""

import asyncio

import pytest
from aiohttp import WSMsgType, WSServerHandshakeError

from gateway.http.websocket import WEBSOCKETS
from tests.fakes.in_process_gateway import gateway_before
from tests.fakes.scripted_server import ScriptedServer


async def test_other_requests_are_refused() -> None:
    async with ScriptedServer() as server, gateway_before(server) as (client, _):
        async with client.get("/v1/responses") as answer:
            assert (answer.status, answer.headers["Upgrade"]) == (426, "websocket")
            assert (await answer.json())["error"]["code"] == "upgrade_required"
        headers = {"Upgrade": "websocket", "Connection": "upgrade", "Sec-WebSocket-Version": "7"}
        async with client.get("/v1/responses", headers=headers) as answer:
            assert answer.status == 400
        with pytest.raises(WSServerHandshakeError) as refused:
            async with client.ws_connect("/v1/responses", headers={"X-Semantic-Session": "s"}):
                pass
        assert refused.value.status == 400
        assert not client.app[WEBSOCKETS]._open


async def test_their_number_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.app.MAX_SOCKETS", 2)
    async with ScriptedServer() as server, gateway_before(server) as (client, _):
        async with client.ws_connect("/v1/responses"), client.ws_connect("/v1/responses"):
            with pytest.raises(WSServerHandshakeError) as refused:
                async with client.ws_connect("/v1/responses"):
                    pass
            assert refused.value.status == 429
        async with asyncio.timeout(10):
            while client.app[WEBSOCKETS]._open:
                await asyncio.sleep(0.01)
        async with client.ws_connect("/v1/responses"):
            pass


async def test_all_are_closed_when_the_server_stops() -> None:
    async with (
        ScriptedServer() as server,
        gateway_before(server) as (client, _),
        client.ws_connect("/v1/responses") as socket,
    ):
        await client.app[WEBSOCKETS].close_all()
        assert (await socket.receive()).type in (WSMsgType.CLOSE, WSMsgType.CLOSED, WSMsgType.CLOSING)
        assert socket.close_code == 1001


@pytest.mark.parametrize(
    ("allowed", "origin", "status"),
    [
        ([], None, 101),
        ([], "http://{host}", 101),
        ([], "http://evil.example", 403),
        ([], "null", 403),
        (["http://good.example"], "http://good.example", 101),
        (["http://good.example"], "http://evil.example", 403),
        (["*"], "http://evil.example", 101),
    ],
)
async def test_pages_of_other_origins_are_refused(allowed: list[str], origin: str | None, status: int) -> None:
    async with ScriptedServer() as server, gateway_before(server, cors_origin=allowed) as (client, _):
        headers = {} if origin is None else {"Origin": origin.format(host=f"{client.host}:{client.port}")}
        try:
            async with client.ws_connect("/v1/responses", headers=headers):
                found = 101
        except WSServerHandshakeError as refused:
            found = refused.status
        assert found == status
