"""gateway/api/serializers/choices.py: several answers, their order, and the usage of each chunk."""

import json
from typing import Any

import pytest

from tests.fakes.in_process_gateway import GatewayClient, ScriptedGateway
from tests.fakes.scripted_server import refuses, says

MESSAGES = [{"role": "user", "content": "x"}]


async def chat(client: GatewayClient, **body: Any) -> Any:
    async with client.post("/v1/chat/completions", json={"model": "fake", "messages": MESSAGES, **body}) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


async def chunks(client: GatewayClient, **body: Any) -> list[Any]:
    fields = {"model": "fake", "messages": MESSAGES, "stream": True, **body}
    async with client.post("/v1/chat/completions", json=fields) as answer:
        lines = (await answer.text()).splitlines()
    assert lines[-2] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]


async def test_the_prompt_of_several_answers_counts_once(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.always = says("a", "b")
    one, three = await chat(client), await chat(client, n=3)
    assert [choice["index"] for choice in three["choices"]] == [0, 1, 2]
    assert three["usage"]["prompt_tokens"] == one["usage"]["prompt_tokens"]
    assert three["usage"]["completion_tokens"] == 3 * one["usage"]["completion_tokens"]


@pytest.mark.parametrize("count", [1, 3])
async def test_usage_so_far_grows_to_the_usage_of_the_whole_answer(
    scripted_gateway: ScriptedGateway, count: int
) -> None:
    client, server, _ = scripted_gateway
    server.always = says("a", "b", "c")
    options = {"include_usage": True, "continuous_usage_stats": True}
    streamed = await chunks(client, n=count, stream_options=options)
    totals = [chunk["usage"]["completion_tokens"] for chunk in streamed]
    assert totals == sorted(totals)
    assert streamed[-1]["choices"] == []
    assert streamed[-1]["usage"] == (await chat(client, n=count))["usage"]


async def test_chunks_have_no_usage_unless_the_client_asks_for_it(scripted_gateway: ScriptedGateway) -> None:
    client, _, _ = scripted_gateway
    assert all("usage" not in chunk for chunk in await chunks(client))
    *before, last = await chunks(client, stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in before)
    assert last["usage"]["total_tokens"] > 0


async def test_a_stream_ends_with_the_error_of_a_failed_answer(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.script = [says("a"), refuses(400, "not so")]
    streamed = await chunks(client, n=2)
    assert streamed[-1]["error"]["code"] == "engine_refused"
    assert not any("error" in chunk for chunk in streamed[:-1])


async def test_only_answers_of_named_sessions_describe_their_call(scripted_gateway: ScriptedGateway) -> None:
    client, _, _ = scripted_gateway
    assert "semantic" not in await chat(client)
    async with client.post("/v1/sessions", json={"id": "s"}):
        pass
    answer = await chat(client, n=2, semantic={"session": "s"})
    assert answer["semantic"]["session"] == "s"
    assert len(answer["semantic"]["others"]) == 1
    deferred = await chat(client, semantic={"session": "s", "output": "later", "defer": True})
    assert deferred["choices"][0]["message"]["content"] == "<<later>>"
    assert deferred["usage"]["total_tokens"] == 0
