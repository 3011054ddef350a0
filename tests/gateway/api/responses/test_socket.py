"""gateway/api/responses/socket.py: responses over a WebSocket."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openresponses_types as spec
import pytest
from aiohttp import ClientWebSocketResponse, WSMsgType, WSServerHandshakeError
from openai import AsyncOpenAI
from openai.types.responses import ResponsesServerEvent
from pydantic import TypeAdapter

from gateway.http.json_body import BODY_BYTES_LIMIT
from tests.fakes.in_process_gateway import GatewayClient, ScriptedGateway, gateway_before
from tests.fakes.scripted_server import ScriptedServer, breaks_off, hangs, refuses, says
from tests.gateway.api.responses.test_creation import waits
from tests.gateway.api.responses.test_routes import CALL, LOOK, ask, asked, calls

EVENT: TypeAdapter[Any] = TypeAdapter(ResponsesServerEvent)


@asynccontextmanager
async def connected(client: GatewayClient, **options: Any) -> AsyncIterator[ClientWebSocketResponse]:
    async with client.ws_connect("/v1/responses", **options) as socket:
        yield socket


async def send(socket: ClientWebSocketResponse, **body: Any) -> None:
    await socket.send_str(json.dumps({"type": "response.create", "model": "fake", "input": "Hello", **body}))


async def receive(socket: ClientWebSocketResponse) -> Any:
    message = await asyncio.wait_for(socket.receive(), 10)
    assert message.type is WSMsgType.TEXT, message
    event = json.loads(message.data)
    if event["type"] == "error":
        spec.WebSocketErrorEvent.model_validate(event)
    return EVENT.validate_python(event)


async def events_until_end(socket: ClientWebSocketResponse) -> list[Any]:
    events = [await receive(socket)]
    while events[-1].type not in ("response.completed", "response.incomplete", "response.failed", "error"):
        events.append(await receive(socket))
    return events


async def respond(socket: ClientWebSocketResponse, **body: Any) -> Any:
    """Return the response, or the error event."""
    await send(socket, **body)
    *events, last = await events_until_end(socket)
    if last.type == "error":
        return last
    assert [event.sequence_number for event in (*events, last)] == list(range(len(events) + 1))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    return last.response


async def test_one_response_after_another(scripted_gateway: ScriptedGateway) -> None:
    client, server, unfinished = scripted_gateway
    server.script = [says("one ", "two"), calls(CALL), says("A cat.")]
    async with connected(client) as socket:
        first = await respond(socket)
        assert (first.output_text, first.store) == ("one two", True)
        second = await respond(socket, input="What?", previous_response_id=first.id, tools=[LOOK])
        output = {"type": "function_call_output", "call_id": second.output[0].call_id, "output": "cat"}
        third = await respond(socket, input=[output], previous_response_id=second.id, tools=[LOOK])
    assert third.output_text == "A cat."
    assert [role for role, _ in asked(server)] == ["user", "assistant", "user", "assistant", "tool"]
    async with client.get(f"/v1/responses/{third.id}") as answer:
        assert (await answer.json())["id"] == third.id, "it is stored like any other"
    assert not unfinished()


async def test_messages_that_arrive_together_are_answered_in_their_order(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.script = [says("a"), says("b"), says("c")]
    async with connected(client) as socket:
        for lane in ("one", "two", "one"):
            await send(socket, stream_id=lane)
        found = [await events_until_end(socket) for _ in range(3)]
    assert [events[-1].response.output_text for events in found] == ["a", "b", "c"]
    assert [{event.stream_id for event in events} for events in found] == [{"one"}, {"two"}, {"one"}]


async def test_what_is_not_stored_can_be_continued_on_its_connection(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    async with connected(client) as socket:
        first = await respond(socket, input="One", store=False)
        second = await respond(socket, input="Two", store=False, previous_response_id=first.id)
        assert [text for _, text in asked(server)] == ["One", "fake", "Two"]
        old = await respond(socket, input="Or", store=False, previous_response_id=first.id)
        assert (old.status, old.error.code) == (400, "previous_response_not_found"), "only the latest is kept"
        third = await respond(socket, input="Three", previous_response_id=second.id)
        assert [text for _, text in asked(server)] == ["One", "fake", "Two", "fake", "Three"]
    async with connected(client) as socket:
        lost = await respond(socket, previous_response_id=second.id)
        assert (lost.error.code, lost.error.param) == ("previous_response_not_found", "previous_response_id")
        kept = await respond(socket, input="Four", previous_response_id=third.id)
        assert kept.status == "completed"
        assert [text for _, text in asked(server)][-3:] == ["Three", "fake", "Four"], "all turns are stored with it"
        assert (await respond(socket, input="Whole")).status == "completed", "the connection goes on"


@pytest.mark.parametrize("fails", [breaks_off("half"), refuses(400, "no")])
async def test_a_failed_continuation_ends_it(scripted_gateway: ScriptedGateway, fails: Any) -> None:
    client, server, _ = scripted_gateway
    async with connected(client) as socket:
        first = await respond(socket, store=False)
        server.script = [fails]
        failed = await respond(socket, store=False, previous_response_id=first.id)
        assert failed.status in ("failed", 400)
        again = await respond(socket, store=False, previous_response_id=first.id)
        assert again.error.code == "previous_response_not_found"
        stored = await respond(socket)
        server.script = [fails]
        await respond(socket, previous_response_id=stored.id)
        assert (await respond(socket, previous_response_id=stored.id)).status == "completed", "it is stored"


async def test_a_response_without_output_prepares_the_next(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    async with connected(client) as socket:
        for store in (False, True):
            warm = await respond(socket, input="Long.", generate=False, store=store)
            assert (warm.status, warm.output, warm.usage.total_tokens) == ("completed", [], 0)
            assert not server.asked
            if store:
                await ask(client, input="x", previous_response_id=warm.id)
            else:
                await respond(socket, input="Go.", previous_response_id=warm.id)
            assert [role for role, _ in asked(server)] == ["user", "user"]
            server.asked.clear()


async def test_tools_alone_prepare_the_next_response(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    async with connected(client) as socket:
        for input in ([], [{"type": "additional_tools", "tools": [LOOK]}, {"role": "user", "content": "x"}]):
            warm = await respond(socket, input=input, generate=False, store=False)
            told = await respond(socket, input="Go.", previous_response_id=warm.id, store=False)
            assert told.status == "completed"
            assert len(server.asked[-1]["messages"]) == 1 + bool(input)
            assert [tool["function"]["name"] for tool in server.asked[-1].get("tools", [])] == ["look"] * bool(input)
        kept = await ask(client)
        reference = {"type": "item_reference", "id": kept["output"][0]["id"]}
        warm = await respond(socket, input=[reference], generate=False)
        await ask(client, input="More.", previous_response_id=warm.id)
        assert [role for role, _ in asked(server)] == ["assistant", "user"]


INVALID: list[tuple[Any, str, str | None]] = [
    ("{", "invalid_json", None),
    ("[]", "invalid_json", None),
    (b"\xff", "invalid_json", None),
    ("{}", "unsupported_value", "type"),
    ({"type": "response.steer"}, "unsupported_value", "type"),
    ({"type": "response.create"}, "missing_required_parameter", "model"),
    ({"input": []}, "invalid_value", "input"),
    ({"model": "none"}, "model_not_found", "model"),
    ({"stream": False}, "unsupported_value", "stream"),
    ({"background": True}, "unsupported_value", "background"),
    ({"generate": 3}, "invalid_value", "generate"),
    ({"generate": []}, "invalid_value", "generate"),
    ({"stream_id": "a b"}, "invalid_stream_id", "stream_id"),
    ({"stream_id": "x" * 257}, "invalid_stream_id", "stream_id"),
    ({"stream_id": 3}, "invalid_stream_id", "stream_id"),
    ({"semantic": {"session": "s"}}, "unsupported_with_semantic", "semantic.session"),
    ({"semantic": {"output": "o"}}, "unsupported_with_semantic", "semantic.output"),
    ({"previous_response_id": "resp_none"}, "previous_response_not_found", "previous_response_id"),
    ({"conversation": "conv_none"}, "conversation_not_found", "conversation"),
    ({"input": "x" * 10_000, "tools": [{"type": "function"}]}, "missing_required_parameter", "tools.0.name"),
]


@pytest.mark.parametrize(("message", "code", "param"), INVALID)
async def test_an_invalid_message_does_not_end_the_connection(
    scripted_gateway: ScriptedGateway, message: Any, code: str, param: str | None
) -> None:
    client, server, _ = scripted_gateway
    async with connected(client) as socket:
        if isinstance(message, bytes):
            await socket.send_bytes(message)
        elif isinstance(message, str):
            await socket.send_str(message)
        elif "type" in message:
            await socket.send_str(json.dumps(message))
        else:
            await send(socket, **message)
        refused = await receive(socket)
        assert (refused.type, refused.error.code, refused.error.param) == ("error", code, param)
        assert 400 <= refused.status < 500
        assert not server.asked
        assert (await respond(socket)).status == "completed"


async def test_an_error_of_the_upstream_server_is_an_event(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.script = [refuses(400, "not so"), breaks_off("half")]
    async with connected(client) as socket:
        refused = await respond(socket, stream_id="lane")
        assert (refused.type, refused.status, refused.stream_id) == ("error", 400, "lane")
        assert refused.error.message.endswith("not so")
        assert (await respond(socket)).status == "failed"


@pytest.mark.parametrize("says_goodbye", [True, False])
async def test_the_response_is_cancelled_when_the_client_closes(
    scripted_gateway: ScriptedGateway, says_goodbye: bool
) -> None:
    client, server, unfinished = scripted_gateway
    server.script = [hangs("one ")]
    async with connected(client) as socket:
        await send(socket)
        while (await receive(socket)).type != "response.output_text.delta":
            pass
        assert unfinished() == 1
        if says_goodbye:
            await socket.close()
        else:
            assert socket._response is not None
            assert socket._response.connection is not None
            socket._response.connection.transport.abort()  # type: ignore[union-attr]
        async with asyncio.timeout(10):
            while unfinished() or not server.aborted:
                await asyncio.sleep(0.01)


async def test_waiting_messages_are_limited(scripted_gateway: ScriptedGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    client, server, _ = scripted_gateway
    go_on = asyncio.Event()
    server.script = [waits(go_on, says("first"))]
    async with connected(client) as socket:
        await send(socket)
        assert (await receive(socket)).type == "response.created"
        assert (await receive(socket)).type == "response.in_progress"
        for _ in range(18):
            await send(socket)
        for _ in range(2):
            refused = await receive(socket)
            assert (refused.type, refused.status, refused.error.code) == ("error", 429, "overloaded")
        go_on.set()
        assert [(await events_until_end(socket))[-1].type for _ in range(17)] == ["response.completed"] * 17
    monkeypatch.setattr("gateway.api.responses.socket.MAX_MESSAGE_BYTES", 100_000)
    async with connected(client) as socket:
        await send(socket, input="x" * 200_000)
        message = await asyncio.wait_for(socket.receive(), 10)
        assert message.type in (WSMsgType.CLOSE, WSMsgType.CLOSED)
        assert socket.close_code == 1009, "too large"


async def test_large_messages_count_among_the_bytes_in_progress(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    go_on = asyncio.Event()
    server.script = [waits(go_on, says("first")), says("second")]
    limit = client.app[BODY_BYTES_LIMIT]
    async with connected(client) as socket:
        await send(socket, input="x" * 100_000)
        await receive(socket)
        assert limit.amount("") > 100_000
        go_on.set()
        await events_until_end(socket)
        await respond(socket)
        assert limit.amount("") == 0


async def test_large_messages_that_wait_count_among_the_bytes_in_progress(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    go_on = asyncio.Event()
    server.script = [waits(go_on, says("first"))]
    limit = client.app[BODY_BYTES_LIMIT]
    async with connected(client) as socket:
        await send(socket)
        assert (await receive(socket)).type == "response.created"
        assert (await receive(socket)).type == "response.in_progress"
        await send(socket, input="x" * 100_000 + "\N{GRINNING FACE}")
        async with asyncio.timeout(10):
            while not 100_000 < limit.amount("") < 110_000:
                await asyncio.sleep(0.01)
        rest = limit.own - limit.amount("")
        limit.add("", rest)
        await send(socket, input="x" * 100_000)
        refused = await receive(socket)
        assert (refused.type, refused.status, refused.error.code) == ("error", 429, "overloaded")
        limit.remove("", rest)
        go_on.set()
        assert [(await events_until_end(socket))[-1].type for _ in range(2)] == ["response.completed"] * 2
        assert limit.amount("") == 0
        server.script = [hangs("never")]
        await send(socket)
        await receive(socket)
        await send(socket, input="x" * 100_000)
    async with asyncio.timeout(10):
        while limit.amount("") or not server.aborted:
            await asyncio.sleep(0.01)


async def test_a_connection_ends_after_its_time(
    scripted_gateway: ScriptedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, *_ = scripted_gateway
    monkeypatch.setattr("gateway.api.responses.socket.MAX_SECONDS", 0.3)
    async with connected(client) as socket:
        ended = await receive(socket)
        assert (ended.type, ended.error.code) == ("error", "websocket_connection_limit_reached")
        assert (await socket.receive()).type in (WSMsgType.CLOSE, WSMsgType.CLOSED)


async def test_keys_are_checked_and_see_only_their_own() -> None:
    async with ScriptedServer() as server, gateway_before(server, api_key=["one-key", "other-key"]) as (client, _):
        with pytest.raises(WSServerHandshakeError) as refused:
            async with connected(client, headers={"Authorization": "Bearer wrong"}):
                pass
        assert refused.value.status == 401
        mine = await ask(client, key="one-key")
        async with connected(client, headers={"Authorization": "Bearer other-key"}) as socket:
            lost = await respond(socket, previous_response_id=mine["id"])
            assert lost.error.code == "previous_response_not_found"
        async with connected(client, headers={"Authorization": "Bearer one-key"}) as socket:
            assert (await respond(socket, previous_response_id=mine["id"])).status == "completed"


async def test_the_openai_package_talks_over_a_websocket(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.script = [says("one ", "two"), says("three")]
    openai = AsyncOpenAI(base_url=str(client.make_url("/v1")), api_key="x")
    async with openai.responses.connect() as connection:
        texts = []
        for more in ({}, {"store": False}):
            await connection.response.create(model="fake", input="Hello", **more)  # type: ignore[arg-type]
            async for event in connection:
                if event.type == "response.completed":
                    texts.append(event.response.output_text)
                    break
    assert texts == ["one two", "three"]
