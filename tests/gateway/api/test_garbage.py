"""Objects of a request are freed when the request ends, without the cycle collector."""

import asyncio
import gc
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from gateway.graph.call import Call
from gateway.graph.session import Session
from gateway.graph.variable import Variable
from tests.fakes.in_process_gateway import GatewayClient
from tests.fakes.scripted_server import ScriptedServer, breaks_off, hangs, refuses, says, sends

Kind = Callable[[GatewayClient, ScriptedServer], Awaitable[None]]
CHAT = {"model": "fake", "messages": [{"role": "user", "content": "Hello"}]}
RESPONSE = {"model": "fake", "input": "Hello"}


async def whole(client: GatewayClient, server: ScriptedServer) -> None:
    async with client.post("/v1/chat/completions", json=CHAT) as answer:
        assert answer.status == 200


async def several(client: GatewayClient, server: ScriptedServer) -> None:
    async with client.post("/v1/chat/completions", json={**CHAT, "n": 3}) as answer:
        assert len((await answer.json())["choices"]) == 3


async def streamed(client: GatewayClient, server: ScriptedServer) -> None:
    server.script.append(says("one ", "two ", "three"))
    async with client.post("/v1/chat/completions", json={**CHAT, "stream": True}) as answer:
        assert (await answer.text()).endswith("data: [DONE]\n\n")


async def completed(client: GatewayClient, server: ScriptedServer) -> None:
    async with client.post("/v1/completions", json={"model": "fake", "prompt": ["a", "b"]}) as answer:
        assert answer.status == 200


async def responded(client: GatewayClient, server: ScriptedServer) -> None:
    async with client.post("/v1/responses", json=RESPONSE) as answer:
        before = (await answer.json())["id"]
    body = {**RESPONSE, "previous_response_id": before, "stream": True}
    async with client.post("/v1/responses", json=body) as answer:
        assert "response.completed" in await answer.text()


async def response_broken_off(client: GatewayClient, server: ScriptedServer) -> None:
    server.script.append(breaks_off("a ", "b "))
    async with client.post("/v1/responses", json={**RESPONSE, "stream": True}) as answer:
        assert "response.failed" in await answer.text()


async def messages(client: GatewayClient, server: ScriptedServer) -> None:
    body = {"model": "fake", "max_tokens": 5, "messages": CHAT["messages"]}
    async with client.post("/v1/messages", json=body) as answer:
        assert answer.status == 200
    async with client.post("/v1/messages", json={**body, "stream": True}) as answer:
        assert "message_stop" in await answer.text()
    server.script.append(breaks_off("a ", "b "))
    async with client.post("/v1/messages", json={**body, "stream": True}) as answer:
        assert "event: error" in await answer.text()


async def refused_there(client: GatewayClient, server: ScriptedServer) -> None:
    server.script.append(refuses(400, "not so"))
    async with client.post("/v1/chat/completions", json=CHAT) as answer:
        assert answer.status == 400


async def refused_here(client: GatewayClient, server: ScriptedServer) -> None:
    for body in ({**CHAT, "temperature": "hot"}, {**CHAT, "stop_token_ids": [-1]}, {**CHAT, "model": "other"}):
        async with client.post("/v1/chat/completions", json=body) as answer:
            assert answer.status in (400, 404)


async def nonsense(client: GatewayClient, server: ScriptedServer) -> None:
    server.script += [sends(b"data: {]\n\n")] * 3
    async with client.post("/v1/chat/completions", json=CHAT) as answer:
        assert answer.status == 503


async def broken_off(client: GatewayClient, server: ScriptedServer) -> None:
    server.script.append(breaks_off("a ", "b "))
    async with client.post("/v1/chat/completions", json={**CHAT, "stream": True}) as answer:
        await answer.text()


async def left(client: GatewayClient, server: ScriptedServer) -> None:
    server.script.append(hangs("a "))
    with suppress(TimeoutError):
        async with asyncio.timeout(0.2), client.post("/v1/chat/completions", json={**CHAT, "stream": True}) as answer:
            await answer.text()


async def over_a_websocket(client: GatewayClient, server: ScriptedServer) -> None:
    server.script += [says("one"), breaks_off("a "), refuses(400, "no")]
    async with client.ws_connect("/v1/responses") as socket:
        for last in ("response.completed", "response.failed", "error"):
            await socket.send_json({"type": "response.create", **RESPONSE})
            while (await socket.receive_json())["type"] != last:
                pass


async def compacted(client: GatewayClient, server: ScriptedServer) -> None:
    async with client.post("/v1/responses/compact", json=RESPONSE) as answer:
        assert answer.status == 200


KINDS: list[Kind] = [
    *(whole, several, streamed, completed, responded, over_a_websocket, compacted),
    *(refused_there, refused_here, nonsense, broken_off, response_broken_off, messages, left),
]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_request_leaves_no_garbage_for_the_cycle_collector(
    kind: Kind, scripted_gateway: tuple[GatewayClient, ScriptedServer, Callable[[], int]]
) -> None:
    client, server, unfinished = scripted_gateway
    await kind(client, server)  # whatever is made once is there by now
    gc.collect()
    gc.freeze()  # so that the collector examines only what follows
    gc.disable()
    try:
        await kind(client, server)
        async with asyncio.timeout(5):
            while unfinished() or server.aborted < (2 if kind is left else 0):
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found = [type(one).__name__ for one in gc.garbage if isinstance(one, Session | Call | Variable)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not found
