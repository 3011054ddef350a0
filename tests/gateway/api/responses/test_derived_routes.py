"""gateway/api/responses/derived_routes.py: numbers of input tokens, and compacted conversations."""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import openresponses_types as spec
import pytest
from openai.types.responses import CompactedResponse, ResponseCompactionItem
from openai.types.responses.input_token_count_response import InputTokenCountResponse

from compat.openai.responses.opaque import read_compaction
from engine.tokenizer import Tokenizer
from tests.fakes.checkpoints import write_byte_tokenizer
from tests.fakes.in_process_gateway import GatewayClient, ScriptedGateway, gateway_before
from tests.fakes.scripted_server import ScriptedServer, hangs, says
from tests.gateway.api.responses.test_routes import CALL, LOOK, ask, asked, calls

USER = {"role": "user", "content": "Plan the trip."}


async def post(client: GatewayClient, path: str, status: int = 200, **body: Any) -> Any:
    async with client.post(f"/v1/responses/{path}", json=body) as answer:
        told = await answer.json()
        assert answer.status == status, told
    return told


async def count(client: GatewayClient, **body: Any) -> int:
    told = await post(client, "input_tokens", **body)
    return InputTokenCountResponse.model_validate(told).input_tokens


async def test_the_tokens_of_a_prompt_are_counted(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    async with ScriptedServer() as server, gateway_before(server, Tokenizer(tmp_path)) as (client, _):
        short, long = await count(client, input="x"), await count(client, model="fake", input="x" * 100)
        assert long - short == 99, "a token for each byte"
        assert await count(client, input="x", reasoning={"effort": "low"}, truncation="auto", personality="x") == short
        assert await count(client, input="x", instructions="Be short.") > short + 9
        assert await count(client, input="x", tools=[LOOK]) > short + 50
        only = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "look"}]}
        other = {**LOOK, "name": "other"}
        assert await count(client, input="x", tools=[LOOK, other], tool_choice=only) == await count(
            client, input="x", tools=[LOOK]
        )
        first = await ask(client, input="x")
        assert first["usage"]["input_tokens"] in (short, 7), "the upstream server counts itself"
        assert await count(client, input="y", previous_response_id=first["id"]) > short
        assert len(server.asked) == 1, "no model is asked"
        refused = await post(client, "input_tokens", 400, input="x" * 5_000)
        assert refused["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": [{"role": "user"}]}, "input.0.content"),
        ({"input": "x", "tools": [{}]}, "tools.0.type"),
        ({"input": "x", "tool_choice": "required"}, "tool_choice"),
        ({"input": "x", "stream": True}, "stream"),
        ({"input": "x", "previous_response_id": "resp_none"}, "previous_response_id"),
    ],
)
async def test_invalid_requests_name_the_field(tmp_path: Path, body: Any, param: str) -> None:
    write_byte_tokenizer(tmp_path)
    async with ScriptedServer() as server, gateway_before(server, Tokenizer(tmp_path)) as (client, _):
        assert (await post(client, "input_tokens", 400, **body))["error"]["param"] == param
        if param not in ("tools.0.type", "tool_choice"):
            assert (await post(client, "compact", 400, model="fake", **body))["error"]["param"] == param


async def test_tokens_of_other_servers_are_unknown(scripted_gateway: ScriptedGateway) -> None:
    client, *_ = scripted_gateway
    assert (await post(client, "input_tokens", 400, input="x"))["error"]["code"] == "unsupported_by_engine"


async def test_a_compacted_conversation_continues(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.script = [says("They go to ", "Rome."), says("On Monday.")]
    items = [USER, {"role": "assistant", "content": "To Rome?"}, {"role": "user", "content": "Yes."}]
    told = await post(client, "compact", model="fake", input=items, instructions="Be short.")
    assert asked(server)[:4] == [
        ("system", "Be short."),
        ("user", "Plan the trip."),
        ("assistant", "To Rome?"),
        ("user", "Yes."),
    ]
    assert "Summarize" in asked(server)[4][1]
    spec.CompactResource.model_validate(told)
    (compaction,) = told["output"]
    assert CompactedResponse.model_validate(told).to_dict() == told
    assert ResponseCompactionItem.model_validate(compaction).to_dict() == compaction
    assert told["usage"]["output_tokens"] == 2
    await ask(client, input=[*told["output"], {"role": "user", "content": "When?"}])
    summary = "The user wrote: Plan the trip.\n\nThe user wrote: Yes.\n\nThey go to Rome."
    assert asked(server) == [("user", f"Summary of the conversation so far:\n{summary}"), ("user", "When?")]


async def test_a_stored_conversation_is_compacted(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.script = [calls(CALL), says("sum"), says("sum")]
    first = await ask(client, input="Look.", tools=[LOOK])
    told = await post(client, "compact", model="fake", previous_response_id=first["id"])
    assert [role for role, _ in asked(server)] == ["user", "assistant", "user"]
    assert read_compaction(told["output"][0]["encrypted_content"]) == "The user wrote: Look.\n\nsum"
    reference = {"type": "item_reference", "id": first["output"][0]["id"]}
    output = {"type": "function_call_output", "call_id": first["output"][0]["call_id"], "output": "x"}
    told = await post(client, "compact", model="fake", input=[USER, reference, output])
    assert [role for role, _ in asked(server)] == ["user", "assistant", "tool", "user"]
    async with client.get(f"/v1/responses/{told['id']}") as answer:
        assert answer.status == 404, "it is not stored"


async def test_a_compacted_conversation_is_small(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.script = [says("sum"), says("  "), says("x")]
    long = [{"role": "user", "content": "x" * 60_000}, {"role": "user", "content": "y" * 10_000}]
    told = await post(client, "compact", model="fake", input=long)
    text = read_compaction(told["output"][0]["encrypted_content"])
    assert text == f"The user wrote: {'y' * 10_000}\n\nsum", "the newest texts stay"
    await post(client, "compact", 503, model="fake", input="x")
    headers = {"X-Session-Id": "s", "X-Semantic-Defer": "true"}
    async with client.post("/v1/responses/compact", json={"model": "fake", "input": "x"}, headers=headers) as answer:
        assert answer.status == 400


async def test_a_compaction_keeps_the_newest_texts_in_their_order(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.always = says("sum")
    texts = ["old " * 20_000, "one", "", "two"]
    items = [{"role": "user", "content": [{"type": "input_text", "text": text}]} for text in texts]
    told = await post(client, "compact", model="fake", input=items)
    text = read_compaction(told["output"][0]["encrypted_content"])
    assert text == "The user wrote: one\n\nThe user wrote: two\n\nsum", "an empty text says nothing"


async def test_a_compaction_is_cancelled_when_the_client_disconnects(scripted_gateway: ScriptedGateway) -> None:
    client, server, unfinished = scripted_gateway
    server.script = [hangs("one ")]
    with suppress(TimeoutError):
        async with asyncio.timeout(0.3):
            await post(client, "compact", model="fake", input="x")
    async with asyncio.timeout(10):
        while unfinished() or not server.aborted:
            await asyncio.sleep(0.01)
