"""gateway/api/responses/routes.py: requests to an upstream server, stored responses, and errors."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from tests.fakes.in_process_gateway import GatewayClient, ScriptedGateway, gateway_before
from tests.fakes.scripted_server import ScriptedServer, breaks_off, chunk, refuses, says, stream

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
LOOK = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}}
CALL = {"name": "look", "arguments": '{"at": "it"}'}


def calls(*functions: dict[str, str], finish: str = "tool_calls") -> Any:
    """Return an answer that calls these functions, with the arguments in two pieces."""

    async def behave(request: Any, body: dict[str, Any]) -> Any:
        deltas = []
        for index, one in enumerate(functions):
            half = len(one["arguments"]) // 2
            begin = {
                "index": index,
                "id": f"call_{index}",
                "type": "function",
                "function": {"name": one["name"], "arguments": one["arguments"][:half]},
            }
            deltas += [
                {"tool_calls": [begin]},
                {"tool_calls": [{"index": index, "function": {"arguments": one["arguments"][half:]}}]},
            ]
        events = [
            {"id": "x", "model": body["model"], "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
            for delta in deltas
        ]
        return await stream(request, [*events, chunk(body, None, finish)])

    return behave


async def ask(client: GatewayClient, status: int = 200, key: str | None = None, **body: Any) -> Any:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    headers |= body.pop("headers", {})
    async with client.post(
        "/v1/responses", json={"model": "fake", "input": "Hello", **body}, headers=headers
    ) as answer:
        told = await answer.json()
        assert answer.status == status, told
    if status == 200:
        assert Response.model_validate(told).to_dict() == told | {"created_at": float(told["created_at"])} | (
            {} if told["completed_at"] is None else {"completed_at": float(told["completed_at"])}
        )
    return told


async def events_of(client: GatewayClient, **body: Any) -> list[Any]:
    async with client.post("/v1/responses", json={"model": "fake", "input": "Hello", "stream": True, **body}) as answer:
        assert answer.status == 200
        text = await answer.text()
    events = []
    for event in text.strip().split("\n\n"):
        if event.startswith(":"):
            continue
        name, data = event.split("\n")
        events.append(EVENT.validate_python(json.loads(data.removeprefix("data: "))))
        assert name == f"event: {events[-1].type}"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    return events


def asked(server: ScriptedServer) -> list[tuple[str, Any]]:
    """Return the conversation of the last request."""
    return [(message["role"], message["content"]) for message in server.asked[-1]["messages"]]


async def test_items_become_messages(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    called = {"type": "function_call", "id": "fc_1", "status": "completed", "call_id": "c1", **CALL}
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "one"}, {"type": "input_text", "text": "two"}]},
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "I look.", "annotations": [], "logprobs": []}],
        },
        called,
        {**called, "id": "fc_2", "call_id": "c2"},
        {"type": "function_call_output", "call_id": "c1", "output": "nothing"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "much"}]},
    ]
    await ask(
        client, input=items, instructions="Be short.", tools=[LOOK], parallel_tool_calls=False, max_output_tokens=9
    )
    body = server.asked[-1]
    assert [message["role"] for message in body["messages"]] == ["system", "user", "assistant", "tool", "tool"]
    assert asked(server)[:3] == [("system", "Be short."), ("user", "one\ntwo"), ("assistant", "I look.")]
    assert [call["id"] for call in body["messages"][2]["tool_calls"]] == ["c1", "c2"]
    assert [message["tool_call_id"] for message in body["messages"][3:]] == ["c1", "c2"]
    assert asked(server)[3:] == [("tool", "nothing"), ("tool", "much")]
    assert body["parallel_tool_calls"] is False
    assert body["tools"][0]["function"]["name"] == "look"
    assert body["tools"][0]["function"]["strict"] is True


async def test_a_conversation_continues_by_id(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.script = [says("Rome"), says("Tiber"), says("Po")]
    first = await ask(client, input="A city?", instructions="Be short.")
    second = await ask(client, input="Its river?", previous_response_id=first["id"])
    assert asked(server) == [("user", "A city?"), ("assistant", "Rome"), ("user", "Its river?")], (
        "instructions are not carried on"
    )
    third = await ask(client, input="Another?", previous_response_id=second["id"], instructions="Be long.")
    assert asked(server)[0] == ("system", "Be long.")
    assert [text for _, text in asked(server)[1:]] == ["A city?", "Rome", "Its river?", "Tiber", "Another?"]
    assert (third["previous_response_id"], third["store"]) == (second["id"], True)
    branch = await ask(client, input="Or?", previous_response_id=first["id"])
    assert [text for _, text in asked(server)] == ["A city?", "Rome", "Or?"]
    async with client.get(f"/v1/responses/{branch['id']}") as answer:
        assert await answer.json() == branch


async def test_a_tool_call_continues_with_its_output(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.script = [calls(CALL)]
    first = await ask(client, tools=[LOOK], tool_choice={"type": "function", "name": "look"})
    (item,) = first["output"]
    assert (item["type"], item["name"], json.loads(item["arguments"])) == ("function_call", "look", {"at": "it"})
    output = {"type": "function_call_output", "call_id": item["call_id"], "output": "a cat"}
    await ask(client, previous_response_id=first["id"], input=[output], tools=[LOOK])
    messages = server.asked[-1]["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool"]
    assert messages[1]["tool_calls"][0]["id"] == messages[2]["tool_call_id"] == item["call_id"]


async def test_a_tool_call_that_was_cut_off_is_not_continued(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.script = [calls({"name": "look", "arguments": '{"at": "i'}, finish="length")]
    first = await ask(client, tools=[LOOK], tool_choice="required")
    assert first["output"][0]["arguments"] == '{"at": "i'
    await ask(client, previous_response_id=first["id"], input="Go on.", tools=[LOOK])
    assert [message["role"] for message in server.asked[-1]["messages"]] == ["user", "user"]


async def test_responses_that_are_not_stored_cannot_be_continued(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    unkept = await ask(client, store=False)
    assert unkept["store"] is False
    kept = await ask(client)
    async with client.delete(f"/v1/responses/{kept['id']}") as answer:
        assert await answer.json() == {"id": kept["id"], "object": "response", "deleted": True}
    for id in (unkept["id"], kept["id"], "resp_never"):
        refused = await ask(client, 400, previous_response_id=id)
        assert refused["error"]["code"] == "previous_response_not_found"
        assert refused["error"]["param"] == "previous_response_id"
        for method in ("GET", "DELETE"):
            async with client.request(method, f"/v1/responses/{id}") as answer:
                assert answer.status == 404
                assert (await answer.json())["error"]["code"] == "response_not_found"
    assert len(server.asked) == 2, "what is refused reaches nobody"


async def test_keys_see_only_their_own_responses() -> None:
    async with ScriptedServer() as server, gateway_before(server, api_key=["one-key", "other-key"]) as (client, _):
        mine = await ask(client, key="one-key")
        assert (await ask(client, 400, "other-key", previous_response_id=mine["id"]))["error"][
            "code"
        ] == "previous_response_not_found"
        async with client.get(f"/v1/responses/{mine['id']}", headers={"Authorization": "Bearer other-key"}) as answer:
            assert answer.status == 404
        await ask(client, key="one-key", previous_response_id=mine["id"])


async def test_a_server_without_a_response_store() -> None:
    async with ScriptedServer() as server, gateway_before(server, max_kept_bytes=0) as (client, _):
        told = await ask(client)
        assert told["store"] is False
        assert (await ask(client, 400, store=True))["error"]["param"] == "store"
        assert (await ask(client, 400, previous_response_id=told["id"]))["error"][
            "code"
        ] == "previous_response_not_found"


async def test_references_are_replaced_only_in_their_session(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.script = [says("a <<river>>"), says("ok"), says("Tiber"), says("fine"), says("so"), says("done")]
    plain = await ask(client, input="Literal <<river>>")
    headers = {"X-Semantic-Session": "rivers"}
    await ask(client, input="And?", previous_response_id=plain["id"], headers=headers)
    assert [text for _, text in asked(server)] == ["Literal <<river>>", "a <<river>>", "And?"], "neither is one"
    await ask(client, input="Name one.", semantic={"output": "river"}, headers=headers)
    inside = await ask(client, input="About <<river>>", headers=headers)
    assert asked(server) == [("user", "About Tiber")]
    await ask(client, input="More", previous_response_id=inside["id"], headers=headers)
    assert [text for _, text in asked(server)] == ["About Tiber", "fine", "More"]
    for elsewhere in ({}, {"X-Semantic-Session": "others"}):
        refused = await ask(client, 400, input="More", previous_response_id=inside["id"], headers=elsewhere)
        assert refused["error"]["code"] == "session_conflict"


async def test_a_deferred_answer_is_its_reference(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    headers = {"X-Semantic-Session": "later", "X-Semantic-Defer": "true"}
    server.script = [says("a cat"), says("meow")]
    first = await ask(client, headers=headers)
    (part,) = first["output"][0]["content"]
    assert part["text"] == f"<<{first['semantic']['output']}>>"
    assert (first["status"], first["store"], first["usage"]["total_tokens"]) == ("completed", False, 0)
    await ask(client, input=f"Sing of {part['text']}", headers={"X-Semantic-Session": "later"})
    assert asked(server) == [("user", "Sing of a cat")]
    refused = await ask(client, 400, store=True, headers=headers)
    assert refused["error"]["param"] == "store"
    events = await events_of(client, semantic={"session": "later", "output": "last", "defer": True})
    assert [event.delta for event in events if event.type == "response.output_text.delta"] == ["<<last>>"]
    assert events[-1].type == "response.completed"


PLACES = [
    ({"input": "<<nobody>>"}, "input"),
    ({"input": [{"role": "user", "content": "<<nobody>>"}]}, "input.0.content"),
    (
        {
            "input": [
                {"role": "user", "content": "a"},
                {"role": "user", "content": [{"type": "input_text", "text": "<<nobody>>"}]},
            ]
        },
        "input.1.content.0.text",
    ),
    ({"input": "x", "instructions": "<<nobody>>"}, "instructions"),
    (
        {
            "input": [
                {"type": "function_call", "call_id": "c", **CALL},
                {"type": "function_call_output", "call_id": "c", "output": "<<nobody>>"},
            ]
        },
        "input.1.output",
    ),
]


@pytest.mark.parametrize(("body", "param"), PLACES)
async def test_an_error_names_the_place_of_an_unknown_reference(
    scripted_gateway: ScriptedGateway, body: dict[str, Any], param: str
) -> None:
    refused = await ask(scripted_gateway[0], 400, **body, headers={"X-Semantic-Session": "places"})
    assert (refused["error"]["code"], refused["error"]["param"]) == ("unknown_variable", param)


async def test_text_is_streamed_as_it_arrives(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.script = [says("one ", "two"), says("one ", "two")]
    whole = await ask(client)
    events = await events_of(client)
    kinds = dict.fromkeys(event.type for event in events)  # what comes together is one delta
    assert list(kinds) == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    last = events[-1].response
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert last.output_text == events[-4].text == events[-3].part.text == text == "one two"
    assert {event.item_id for event in events[3:-2]} == {events[2].item.id, events[-2].item.id, last.output[0].id}
    assert (events[0].response.status, events[0].response.output, events[0].response.usage) == ("in_progress", [], None)
    assert last.usage.to_dict() == whole["usage"]
    assert last.id == events[0].response.id
    assert (await ask(client, previous_response_id=last.id))["status"] == "completed", "it is kept as well"


async def test_tool_calls_are_streamed_as_they_arrive(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.script = [calls(CALL, {"name": "look", "arguments": '{"at": "me"}'})]
    events = await events_of(client, tools=[LOOK])
    added = [event for event in events if event.type == "response.output_item.added"]
    assert [(event.output_index, event.item.type, event.item.arguments) for event in added] == [
        (0, "function_call", ""),
        (1, "function_call", ""),
    ]
    for index, arguments in enumerate(("it", "me")):
        deltas = [
            event.delta
            for event in events
            if event.type == "response.function_call_arguments.delta" and event.output_index == index
        ]
        assert json.loads("".join(deltas)) == {"at": arguments}
    last = events[-1].response
    assert [json.loads(item.arguments) for item in last.output] == [{"at": "it"}, {"at": "me"}]
    assert [item.call_id for item in last.output] == [event.item.call_id for event in added]


async def test_an_answer_that_is_cut_short_is_incomplete(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.script = [says("one", finish="length"), says("one", finish="length")]
    whole = await ask(client)
    assert (whole["status"], whole["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert whole["output"][0]["status"] == "incomplete"
    assert (await events_of(client))[-1].type == "response.incomplete"


async def test_an_answer_of_nothing_is_an_empty_message(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.script = [says(), says()]
    whole = await ask(client)
    assert [part["text"] for item in whole["output"] for part in item["content"]] == [""]
    assert (await events_of(client))[-1].response.output_text == ""


async def test_an_error_after_the_first_event_is_the_last_event(scripted_gateway: ScriptedGateway) -> None:
    client, server, unfinished = scripted_gateway
    server.script = [breaks_off("one ", "two ")]
    events = await events_of(client)
    assert events[-1].type == "response.failed"
    assert events[-1].response.status == "failed"
    assert (events[-1].response.error.code, events[-1].response.error.type) == ("server_error", "engine_failed")
    assert events[-1].response.output[0].status == "incomplete"
    assert events[-1].response.output_text == "one two "
    assert not unfinished()
    refused = await ask(client, 400, previous_response_id=events[-1].response.id)
    assert refused["error"]["code"] == "previous_response_not_found", "nobody goes on with half an answer"


async def test_an_error_before_the_first_event_has_a_status(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    for streamed in (False, True):
        server.script = [refuses(400, "not so")]
        assert (await ask(client, 400, stream=streamed))["error"]["message"].endswith("not so")


@pytest.fixture
async def small() -> AsyncIterator[tuple[GatewayClient, ScriptedServer]]:
    async with ScriptedServer() as server, gateway_before(server, max_kept_bytes=5_000) as (client, _):
        yield client, server


async def test_the_oldest_responses_are_removed_for_new_ones(small: tuple[GatewayClient, ScriptedServer]) -> None:
    client, _ = small
    ids = [(await ask(client, input=f"{number}"))["id"] for number in range(6)]
    found = []
    for id in ids:
        async with client.get(f"/v1/responses/{id}") as answer:
            found.append(answer.status == 200)
    assert found == sorted(found)
    assert found[-1]
    assert not found[0]
