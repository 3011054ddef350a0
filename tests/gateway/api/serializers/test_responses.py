"""gateway/api/serializers/responses.py: a call as a response, whole, deferred and streamed."""

import json
from typing import Any

from tests.fakes.in_process_gateway import GatewayClient, ScriptedGateway
from tests.fakes.scripted_server import breaks_off, says


async def respond(client: GatewayClient, **body: Any) -> Any:
    async with client.post("/v1/responses", json={"model": "fake", "input": "x", **body}) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


async def events(client: GatewayClient, **body: Any) -> list[Any]:
    async with client.post("/v1/responses", json={"model": "fake", "input": "x", "stream": True, **body}) as answer:
        text = await answer.text()
    assert "[DONE]" not in text, "a stream of responses ends with its last event"
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]


async def test_the_last_event_has_the_whole_response(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.always = says("one ", "two")
    whole, streamed = await respond(client), await events(client)
    assert [event["sequence_number"] for event in streamed] == list(range(len(streamed)))
    assert [streamed[0]["type"], streamed[-1]["type"]] == ["response.created", "response.completed"]
    last = streamed[-1]["response"]
    assert last["output"][0]["content"][0]["text"] == "one two" == whole["output"][0]["content"][0]["text"]
    own = {"id", "created_at", "completed_at", "output"}
    assert {key: last[key] for key in last.keys() - own} == {key: whole[key] for key in whole.keys() - own}


async def test_an_answer_that_was_cut_off_is_incomplete(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.always = says("one", finish="length")
    whole, streamed = await respond(client), await events(client)
    assert (whole["status"], whole["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert streamed[-1]["type"] == "response.incomplete"


async def test_a_failure_is_the_last_event(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.script = [breaks_off("one ")]
    *before, last = await events(client)
    assert last["type"] == "response.failed"
    assert (last["response"]["status"], last["response"]["error"] is None) == ("failed", False)
    assert not any(event["type"] == "response.completed" for event in before)


async def test_a_deferred_response_is_a_reference(scripted_gateway: ScriptedGateway) -> None:
    client, _, _ = scripted_gateway
    async with client.post("/v1/sessions", json={"id": "s"}):
        pass
    deferred = {"semantic": {"session": "s", "output": "later", "defer": True}}
    whole = await respond(client, **deferred)
    assert whole["output"][0]["content"][0]["text"] == "<<later>>"
    assert whole["semantic"]["output"] == "later"
    deferred["semantic"]["output"] = "other"
    streamed = await events(client, **deferred)
    assert "".join(event["delta"] for event in streamed if event["type"] == "response.output_text.delta") == "<<other>>"
