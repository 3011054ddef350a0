"""POST /v1/messages through the gateway, in front of a scripted server: requests, limits, errors and sessions."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from engine.tokenizer import Tokenizer
from tests.fakes.checkpoints import write_byte_tokenizer
from tests.fakes.in_process_gateway import ScriptedGateway, gateway_before
from tests.fakes.scripted_server import ScriptedServer, hangs, refuses, says
from tests.gateway.api.anthropic.messages_client import ASKED, ask, send

TOOL: dict[str, Any] = {"name": "look", "description": "d", "input_schema": {"type": "object", "properties": {}}}


async def test_an_upstream_server_receives_a_chat_completion(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    await ask(
        client,
        system="Be short.",
        tools=[TOOL, {"type": "web_search_20250305", "name": "web_search"}],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        temperature=0.5,
        top_p=0.9,
        stop_sequences=["END"],
        metadata={"user_id": "u"},
        thinking={"type": "adaptive"},
        output_config={"effort": "high"},
        context_management={"edits": []},
    )
    asked = server.asked[-1]
    assert asked["messages"] == [{"role": "system", "content": "Be short."}, *ASKED]
    assert [tool["function"]["name"] for tool in asked["tools"]] == ["look"]
    assert (asked["tool_choice"], asked["parallel_tool_calls"]) == ("required", False)
    assert (asked["temperature"], asked["top_p"], asked["stop"], asked["max_tokens"]) == (0.5, 0.9, ["END"], 50)
    assert not {"metadata", "thinking", "enable_thinking", "chat_template_kwargs", "reasoning_effort"} & asked.keys()


@pytest.mark.parametrize(("type", "expected"), [("enabled", True), ("adaptive", True), ("disabled", False)])
async def test_servers_with_a_chat_template_get_the_wish_to_think(type: str, expected: bool) -> None:
    budget = {"budget_tokens": 1_024} if type == "enabled" else {}
    async with ScriptedServer() as server, gateway_before(server, kind="vllm") as (client, _):
        await ask(client, thinking={"type": type, **budget})
        assert server.asked[-1]["chat_template_kwargs"] == {"enable_thinking": expected}
        await ask(client)
        assert "chat_template_kwargs" not in server.asked[-1]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, None),
        ({"type": "any"}, "required"),
        ({"type": "tool", "name": "look"}, "required"),
        ({"type": "tool", "name": "web_search"}, None),
        ({"type": "none"}, None),
    ],
)
async def test_tool_choices(scripted_gateway: ScriptedGateway, choice: Any, expected: Any) -> None:
    client, server, _ = scripted_gateway
    search = {"type": "web_search_20250305", "name": "web_search"}
    await ask(client, tools=[TOOL, search], tool_choice=choice)
    assert server.asked[-1].get("tool_choice") == expected
    assert ("tools" in server.asked[-1]) == (choice["type"] != "none")
    await ask(client, tools=[search], tool_choice={"type": "any"})
    assert not {"tools", "tool_choice"} & server.asked[-1].keys(), "only tools that this server does not have"


async def test_a_header_names_dropped_tools(scripted_gateway: ScriptedGateway) -> None:
    client, *_ = scripted_gateway
    types = ["web_search_20250305", "bash_20250124", "web_search_20250305"]
    dropped = [{"type": type, "name": f"tool_{index}"} for index, type in enumerate(types)]
    body = {"model": "fake", "max_tokens": 8, "messages": [{"role": "user", "content": "x"}], "tools": [TOOL, *dropped]}
    for stream in (False, True):
        async with client.post("/v1/messages", json={**body, "stream": stream}) as answer:
            warning = answer.headers["x-myna-warning"]
        assert warning == "this server does not have tools of the type web_search_20250305, bash_20250124"
    async with client.post("/v1/messages", json={**body, "tools": [TOOL]}) as answer:
        assert "x-myna-warning" not in answer.headers


async def test_a_schema_takes_the_path_of_response_format(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "uniqueItems": True}
    server.always = says('{"a": "x"}')
    told = await ask(client, output_config={"format": {"type": "json_schema", "schema": schema}})
    sent = server.asked[-1]["response_format"]["json_schema"]["schema"]
    assert sent["properties"] == schema["properties"]
    assert "a: type" in told["schema_violation"]


async def test_the_answer_continues_the_last_message() -> None:
    talk = [*ASKED, {"role": "assistant", "content": "The answer is"}]
    async with ScriptedServer() as server, gateway_before(server, kind="vllm") as (client, _):
        await ask(client, messages=talk)
        asked = server.asked[-1]
        assert (asked["messages"], asked["continue_final_message"], asked["add_generation_prompt"]) == (
            talk,
            True,
            False,
        )


async def test_the_answer_is_as_long_as_the_window_allows(scripted_gateway: ScriptedGateway, tmp_path: Path) -> None:
    client, server, _ = scripted_gateway
    await ask(client, max_tokens=64_000)
    assert 4_000 < server.asked[-1]["max_tokens"] < 4_096, "of the window of 4096"
    await ask(client, max_tokens=64_000, system="word " * 4_000)
    assert server.asked[-1]["max_tokens"] == 512, "the estimate may be wrong, so the server decides whether it fits"
    write_byte_tokenizer(tmp_path)
    async with gateway_before(server, Tokenizer(tmp_path), "vllm") as (client, _):
        told = await ask(client, max_tokens=64_000)
        asked = server.asked[-1]
        assert asked["max_tokens"] == 4_096 - len(asked["prompt"]), "with known tokens it is exact"
        assert told["stop_reason"] == "end_turn"


async def test_built_in_names_of_agents_are_the_only_model(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    told = await ask(client, model="claude-haiku-4-5-20251001")
    assert (told["model"], server.asked[-1]["model"]) == ("fake", "fake")
    status, told = await send(client, model="gpt-4o")
    assert (status, told["error"]["type"]) == (404, "not_found_error")


@pytest.mark.parametrize("headers", [{"x-api-key": "secret"}, {"Authorization": "Bearer secret"}])
async def test_both_kinds_of_key_are_accepted(headers: dict[str, str]) -> None:
    async with ScriptedServer() as server, gateway_before(server, api_key=["secret"]) as (client, _):
        await ask(client, headers={**headers, "anthropic-version": "2023-06-01", "anthropic-beta": "a,b"})
        status, told = await send(client, headers={"x-api-key": "other"})
        assert (status, told["error"]["type"]) == (401, "authentication_error")
        for path in ("/v1/messages", "/v1/messages/batches"):
            async with client.post(path, json={}) as answer:
                assert (answer.status, (await answer.json())["type"]) == (401, "error")
        async with client.head("/") as answer:
            assert answer.status == 200, "without a key"


async def test_the_query_of_the_beta_api_is_accepted(scripted_gateway: ScriptedGateway) -> None:
    client, _, _ = scripted_gateway
    body = {"model": "fake", "max_tokens": 5, "messages": ASKED}
    async with client.post("/v1/messages?beta=true", json=body) as answer:
        assert (answer.status, (await answer.json())["type"]) == (200, "message")


async def test_errors_before_the_handler_have_anthropics_format() -> None:
    async with ScriptedServer() as server, gateway_before(server, max_body_bytes=1_024, max_calls=1) as (client, _):
        status, told = await send(client, system="x" * 2_000)
        assert (status, told["error"]["type"]) == (413, "request_too_large")
        for method, path, status in (("GET", "/v1/messages", 405), ("POST", "/v1/messages/batches", 404)):
            async with client.request(method, path) as answer:
                told = await answer.json()
                assert (answer.status, told["type"]) == (status, "error")
        async with client.post("/v1/messages", data=b"{") as answer:
            assert (answer.status, (await answer.json())["error"]["type"]) == (400, "invalid_request_error")
        server.script = [hangs()]
        waiting = asyncio.create_task(send(client))
        while not server.asked:
            await asyncio.sleep(0.01)
        status, told = await send(client)
        assert (status, told["error"]["type"]) == (429, "rate_limit_error")
        waiting.cancel()


@pytest.mark.parametrize(
    ("behaviour", "status", "type", "message"),
    [
        (refuses(400, "no"), 400, "invalid_request_error", "no"),
        (
            refuses(400, "This model's maximum context length is 10 tokens. However, you requested 70 tokens"),
            400,
            "invalid_request_error",
            "prompt is too long: 70 tokens > 10 maximum",
        ),
        (refuses(401, "bad key"), 529, "overloaded_error", ""),
    ],
)
async def test_refusals_of_upstream_servers(
    scripted_gateway: ScriptedGateway, behaviour: Any, status: int, type: str, message: str
) -> None:
    client, server, _ = scripted_gateway
    server.always = behaviour
    answered, told = await send(client)
    assert (answered, told["error"]["type"]) == (status, type)
    assert message in told["error"]["message"]


async def test_sessions_references_and_slots_work_as_in_chat(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    headers = {"X-Session-Id": "s"}
    server.script = [says("cat"), says("It is a cat.")]
    deferred = await ask(client, headers, semantic={"output": "animal", "defer": True})
    assert deferred["content"] == [{"type": "text", "text": "<<animal>>", "citations": None}]
    assert (deferred["stop_reason"], deferred["usage"]["output_tokens"]) == ("end_turn", 0)
    talk = [{"role": "user", "content": [{"type": "text", "text": "What is a <<animal>>?"}]}]
    told = await ask(client, headers, messages=talk, system="About: <<animal>>", semantic={"output": "b"})
    assert [message["content"] for message in server.asked[-1]["messages"]] == ["About: cat", "What is a cat?"]
    assert told["semantic"]["output"] == "b"
    status, refused = await send(
        client, headers=headers, messages=[{"role": "user", "content": "<<nobody>>"}], semantic={"output": "c"}
    )
    details = refused["error"]["details"]
    assert (status, details["error_code"], details["param"]) == (400, "unknown_variable", "messages.0.content")
    status, refused = await send(client, semantic={"output": "x"})
    assert (status, refused["error"]["details"]["error_code"]) == (400, "unsupported_with_semantic")
