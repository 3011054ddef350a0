"""gateway/engines/anthropic/engine.py: clients of every API in front of a server with Anthropic's API."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from gateway.engines.openai import Upstream, UpstreamConfig
from tests.fakes.in_process_gateway import GatewayClient, gateway_before
from tests.fakes.scripted_messages import (
    USAGE,
    answers,
    answers_whole,
    call,
    events_of,
    fails,
    message_of,
    send_events,
    text,
    thinking,
)
from tests.fakes.scripted_server import ScriptedServer
from tests.gateway.api.anthropic.messages_client import ASKED, ask, events, send, text_of

Scripted = tuple[GatewayClient, ScriptedServer]
TOOL: dict[str, Any] = {"name": "look", "description": "d", "input_schema": {"type": "object", "properties": {}}}
FUNCTION = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


@pytest.fixture
async def scripted() -> AsyncIterator[Scripted]:
    """Yield a client of a gateway, and its upstream server."""
    async with ScriptedServer() as server, gateway_before(server, kind="anthropic") as (client, _):
        server.always = answers(text("Hi."))
        yield client, server


async def chat(client: GatewayClient, status: int = 200, **body: Any) -> Any:
    async with client.post("/v1/chat/completions", json={"model": "fake", "messages": ASKED, **body}) as answer:
        told = await answer.json()
        assert answer.status == status, told
        return told


async def test_a_chat_completion(scripted: Scripted) -> None:
    client, server = scripted
    server.always = answers(thinking("Hm."), text("Hello."), reason="max_tokens")
    told = await chat(client, max_tokens=5, temperature=0.5, messages=[{"role": "system", "content": "s"}, *ASKED])
    (choice,) = told["choices"]
    assert (choice["message"]["content"], choice["message"]["reasoning_content"]) == ("Hello.", "Hm.")
    assert choice["finish_reason"] == "length"
    assert told["usage"]["prompt_tokens"] == 30
    assert told["usage"]["prompt_tokens_details"]["cached_tokens"] == 15
    assert told["usage"]["completion_tokens_details"]["reasoning_tokens"] == 4
    assert server.paths == ["/v1/messages"]
    assert server.asked[-1] == {
        "model": "fake",
        "system": [{"type": "text", "text": "s"}],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}],
        "max_tokens": 5,
        "temperature": 0.5,
        "stream": True,
    }
    assert server.headers[-1]["anthropic-version"] == "2023-06-01"


@pytest.mark.parametrize("behaviour", [answers, answers_whole])
async def test_a_tool_loop_in_chat(scripted: Scripted, behaviour: Any) -> None:
    client, server = scripted
    server.script = [behaviour(text("Wait. "), call("look", city="Paris"), reason="tool_use")]
    told = await chat(client, tools=[FUNCTION], tool_choice="required")
    message = told["choices"][0]["message"]
    (found,) = message["tool_calls"]
    assert told["choices"][0]["finish_reason"] == "tool_calls"
    assert found["function"]["arguments"].replace(" ", "") == '{"city":"Paris"}'
    assert server.asked[-1]["tool_choice"] == {"type": "any"}
    result = {"role": "tool", "tool_call_id": found["id"], "content": "rain"}
    await chat(client, tools=[FUNCTION], messages=[*ASKED, message, result])
    _, assistant, user = server.asked[-1]["messages"]
    assert assistant["content"][1]["input"] == {"city": "Paris"}
    assert user["content"][0]["tool_use_id"] == assistant["content"][1]["id"] == found["id"]


async def test_a_response(scripted: Scripted) -> None:
    client, server = scripted
    server.script = [answers(thinking("Hm."), call("look", a=1), reason="tool_use")]
    tool = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}}
    async with client.post("/v1/responses", json={"model": "fake", "input": "Hello", "tools": [tool]}) as answer:
        told = await answer.json()
    assert [item["type"] for item in told["output"]] == ["reasoning", "function_call"]
    assert told["usage"]["input_tokens"] == 30


async def test_a_message_keeps_what_both_apis_have(scripted: Scripted) -> None:
    client, server = scripted
    server.always = answers(thinking("Hm."), text("a"), call("look", a=1), reason="tool_use")
    cached = [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}]
    options: dict[str, Any] = {
        "system": cached,
        "tools": [TOOL],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": "xhigh"},
        "stop_sequences": ["END"],
        "top_k": 5,
    }
    whole = await ask(client, **options)
    asked = server.asked[-1]
    same = ("tools", "tool_choice", "thinking", "output_config", "stop_sequences", "top_k", "max_tokens")
    assert {name: asked[name] for name in same} == {**{name: options.get(name) for name in same}, "max_tokens": 50}
    assert asked["system"] == [{"type": "text", "text": "s"}]
    assert asked["cache_control"] == {"type": "ephemeral"}
    assert [block["type"] for block in whole["content"]] == ["thinking", "text", "tool_use"]
    assert (whole["stop_reason"], whole["content"][2]["input"]) == ("tool_use", {"a": 1})
    usage = {**USAGE, "input_tokens": 15, "cache_creation_input_tokens": 0}
    assert {name: whole["usage"][name] for name in usage} == usage
    found = await events(client, **options)
    assert text_of(found) == "a"
    assert found[-2]["delta"]["stop_reason"] == "tool_use"


async def test_the_stop_sequence_and_a_refusal_reach_the_client(scripted: Scripted) -> None:
    client, server = scripted
    server.script = [answers(text("a"), reason="stop_sequence", stop_sequence="END"), answers(reason="refusal")]
    told = await ask(client, stop_sequences=["END"])
    assert (told["stop_reason"], told["stop_sequence"]) == ("stop_sequence", "END")
    assert (await ask(client))["stop_reason"] == "refusal"


async def test_references_are_resolved(scripted: Scripted) -> None:
    client, server = scripted
    server.script = [answers(text("cat"))]
    headers = {"X-Session-Id": "s"}
    await ask(client, headers, semantic={"output": "animal", "defer": True})
    await ask(client, headers, messages=[{"role": "user", "content": "A <<animal>>?"}], semantic={"output": "b"})
    assert server.asked[-1]["messages"][-1]["content"] == [{"type": "text", "text": "A cat?"}]


@pytest.mark.parametrize(
    ("behaviour", "status", "code"),
    [
        (
            fails("invalid_request_error", "prompt is too long: 9 tokens > 5 maximum", status=400),
            400,
            "context_length_exceeded",
        ),
        (fails("invalid_request_error", "no", status=400), 400, "engine_refused"),
        (fails("authentication_error", "no", status=401), 503, "engine_failed"),
        (fails("invalid_request_error", "no"), 400, "engine_refused"),
    ],
)
async def test_errors_of_the_server(scripted: Scripted, behaviour: Any, status: int, code: str) -> None:
    client, server = scripted
    server.always = behaviour
    assert (await chat(client, status))["error"]["code"] == code


async def test_an_overflow_keeps_its_numbers(scripted: Scripted) -> None:
    client, server = scripted
    server.always = fails("invalid_request_error", "prompt is too long: 9 tokens > 5 maximum", status=400)
    _, told = await send(client)
    assert told["error"]["message"].endswith("prompt is too long: 9 tokens > 5 maximum")
    assert told["error"]["message"].startswith("prompt is too long: ")


async def test_an_overloaded_server_gets_another_request_later(scripted: Scripted) -> None:
    client, server = scripted
    server.script = [fails("overloaded_error", status=529)]
    assert (await chat(client))["choices"][0]["message"]["content"] == "Hi."
    assert len(server.asked) == 2


async def test_a_client_that_disconnects_ends_the_request(scripted: Scripted) -> None:
    client, server = scripted

    async def hangs(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await send_events(request, events_of(message_of(text("a long story")))[:4])
        await asyncio.sleep(60)
        return response

    server.script = [hangs]
    body = {"model": "fake", "messages": ASKED, "stream": True}
    async with client.post("/v1/chat/completions", json=body) as answer:
        await answer.content.readany()
        answer.close()
    async with asyncio.timeout(10):
        while not server.aborted:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"seed": 1}, None),
        ({"logprobs": True}, "logprobs"),
        ({"temperature": 1.5}, "temperature"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"chat_template_kwargs": {"a": 1}}, "chat_template_kwargs"),
    ],
)
async def test_fields_without_an_equivalent_are_refused(scripted: Scripted, body: Any, param: str | None) -> None:
    client, _ = scripted
    told = await chat(client, 200 if param is None else 400, **body)
    if param is not None:
        assert (told["error"]["code"], told["error"]["param"]) == ("unsupported_by_engine", param)


async def test_completions_are_refused(scripted: Scripted) -> None:
    async with scripted[0].post("/v1/completions", json={"model": "fake", "prompt": "x"}) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (400, "unsupported_by_engine")


async def test_the_key_and_the_window(scripted: Scripted) -> None:
    async def listed(request: web.Request) -> web.Response:
        seen.append(dict(request.headers))
        assert request.query["limit"] == "1000", "the API lists 20 models otherwise"
        limits = {"max_input_tokens": 200_000, "max_tokens": 64_000}
        model = {"type": "model", "id": "claude-opus", "display_name": "x", **limits}
        return web.json_response({"data": [model], "has_more": False, "first_id": None, "last_id": None})

    seen: list[dict[str, str]] = []
    app = web.Application()
    app.router.add_get("/v1/models", listed)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    upstream = Upstream(
        UpstreamConfig("there", "anthropic", f"http://127.0.0.1:{runner.addresses[0][1]}", "k"), lambda: None
    )
    await upstream.start()
    (model,) = upstream.models
    assert (model.id, model.window, model.answer_tokens) == ("claude-opus", 200_000, 64_000)
    assert {name.lower(): value for name, value in seen[0].items()}["x-api-key"] == "k"
    assert "Authorization" not in seen[0]
    await upstream.close()
    await runner.cleanup()


def look(city: str) -> Any:
    return call("look", city=city)


async def test_thinking_returns_to_the_server_with_its_signature(scripted: Scripted) -> None:
    client, server = scripted
    server.script = [answers(thinking("Where? "), text("Let me look."), look("Rome"), reason="tool_use")]
    told = await chat(client, tools=[FUNCTION])
    message = told["choices"][0]["message"]
    assert message["tool_calls"]
    del message["reasoning_content"]  # most clients do not return it
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "sunny"}
    await chat(client, tools=[FUNCTION], messages=[*ASKED, message, result])
    first, *_ = server.asked[-1]["messages"][1]["content"]
    assert (first["type"], first["thinking"]) == ("thinking", "Where? ")
    assert first["signature"] == thinking("Where? ")["signature"]


async def test_a_message_that_hides_its_thinking_continues(scripted: Scripted) -> None:
    client, server = scripted
    adaptive = {"type": "adaptive", "display": "omitted"}
    fields = {"tools": [TOOL], "thinking": adaptive, "metadata": {"user_id": "u"}}
    server.script = [answers(thinking(""), look("Rome"), reason="tool_use")]
    status, told = await send(client, **fields)
    assert status == 200
    assert server.asked[-1]["thinking"] == adaptive
    assert server.asked[-1]["metadata"] == {"user_id": "u"}
    (used,) = [block for block in told["content"] if block["type"] == "tool_use"]
    result = {"type": "tool_result", "tool_use_id": used["id"], "content": "sunny"}
    turn = [*ASKED, {"role": "assistant", "content": [used]}, {"role": "user", "content": [result]}]
    await send(client, **fields, messages=turn)
    asked = server.asked[-1]
    assert [block["type"] for block in asked["messages"][1]["content"]] == ["thinking", "tool_use"]
    assert asked["thinking"] == adaptive
    used["input"] = {"city": "Oslo"}  # an answer that the gateway does not know
    await send(client, **fields, messages=turn)
    asked = server.asked[-1]
    assert [block["type"] for block in asked["messages"][1]["content"]] == ["tool_use"]
    assert asked["thinking"] == {"type": "disabled"}, "the server would refuse to think without its blocks"
    await send(client, **fields, messages=[*turn, {"role": "assistant", "content": "Sunny."}, *ASKED])
    assert server.asked[-1]["thinking"] == adaptive, "from the next question on it thinks again"
