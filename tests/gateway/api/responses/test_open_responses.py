"""The 17 compliance tests of Open Responses (openresponses.org, 2026-04), against its schema types.

Requests and expectations follow the descriptions of the suite. A scripted server plays the model.
"""

import json
from typing import Any

import openresponses_types as spec
import pytest
from aiohttp import ClientWebSocketResponse, WSMsgType
from pydantic import ValidationError

from tests.fakes.in_process_gateway import GatewayClient, ScriptedGateway
from tests.fakes.scripted_server import says
from tests.gateway.api.responses.test_builder import EVENTS, conforms
from tests.gateway.api.responses.test_routes import calls

IMAGE = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the current weather for a location",
    "parameters": {
        "type": "object",
        "properties": {"location": {"type": "string", "description": "The city and state"}},
        "required": ["location"],
    },
}


def user(content: Any) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": content}


async def post(client: GatewayClient, status: int = 200, path: str = "", **body: Any) -> Any:
    async with client.post(f"/v1/responses{path}", json={"model": "fake", **body}) as answer:
        told = await answer.json()
        assert answer.status == status, told
    return told


async def completed(client: GatewayClient, *input: Any, **body: Any) -> Any:
    told = await post(client, input=[*input], **body)
    conforms(told)
    assert told["status"] == "completed"
    assert told["output"]
    return told


async def over_websocket(socket: ClientWebSocketResponse, **body: Any) -> Any:
    """Return the response that a `response.create` leads to, or the error event. Check all events."""
    event = {"type": "response.create", "model": "fake", **body}
    spec.WebSocketResponseCreateEvent.model_validate_json(json.dumps(event))
    await socket.send_str(json.dumps(event))
    kinds: list[str] = []
    while True:
        message = await socket.receive(10)
        assert message.type is WSMsgType.TEXT
        told = json.loads(message.data)
        kinds.append(told["type"])
        if told["type"] == "error":
            spec.WebSocketErrorEvent.model_validate_json(message.data)
            return told
        conforms(told, EVENTS[told["type"]])
        if told["type"] in ("response.completed", "response.failed", "response.incomplete"):
            assert kinds[0] == "response.created"
            return told["response"]


async def test_basic_response(scripted_gateway: ScriptedGateway) -> None:
    await completed(scripted_gateway[0], user("Say hello in exactly 3 words."))


async def test_assistant_phase(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    history = [
        {"type": "message", "role": "assistant", "phase": "commentary", "content": "I look it up."},
        {"type": "message", "role": "assistant", "phase": "final_answer", "content": "It is four."},
    ]
    await completed(client, user("Two and two?"), *history, user("Sure?"))
    assert [message["role"] for message in server.asked[-1]["messages"]] == ["user", "assistant", "assistant", "user"]
    refused = await post(client, 400, input=[{**history[0], "phase": 3}])
    assert refused["error"]["param"] == "input.0.phase"


async def test_response_output_phase_schema(scripted_gateway: ScriptedGateway) -> None:
    told = await completed(scripted_gateway[0], user("Hello"))
    (item,) = told["output"]
    for phase in ("commentary", "final_answer", None):
        spec.Message.model_validate_json(json.dumps({**item, "phase": phase}))
    with pytest.raises(ValidationError):
        spec.Message.model_validate_json(json.dumps({**item, "phase": "other"}))
    await completed(scripted_gateway[0], user("Hello"), {**item, "phase": "final_answer"}, user("More"))


async def test_streaming_response(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.script = [says("1 2 ", "3 4 ", "5")]
    body = {"model": "fake", "input": [user("Count from 1 to 5.")], "stream": True}
    async with client.post("/v1/responses", json=body) as answer:
        assert answer.content_type == "text/event-stream"
        lines = (await answer.text()).splitlines()
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    for event in events:
        conforms(event, EVENTS[event["type"]])
    assert events[-1]["response"]["status"] == "completed"
    conforms(events[-1]["response"])


async def test_websocket_response(scripted_gateway: ScriptedGateway) -> None:
    async with scripted_gateway[0].ws_connect("/v1/responses") as socket:
        told = await over_websocket(socket, input=[user("Say hello.")])
    conforms(told)
    assert (told["status"], bool(told["output"])) == ("completed", True)


async def test_websocket_sequential_responses(scripted_gateway: ScriptedGateway) -> None:
    async with scripted_gateway[0].ws_connect("/v1/responses") as socket:
        first = await over_websocket(socket, input=[user("One.")], store=False)
        second = await over_websocket(socket, input=[user("Two.")], store=False)
    assert first["id"] != second["id"]
    assert first["status"] == second["status"] == "completed"


async def test_websocket_continuation(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    async with client.ws_connect("/v1/responses") as socket:
        first = await over_websocket(socket, input=[user("The code word is ember.")], store=False)
        second = await over_websocket(
            socket, input=[user("Which is it?")], store=False, previous_response_id=first["id"]
        )
    assert second["previous_response_id"] == first["id"]
    assert [message["role"] for message in server.asked[-1]["messages"]] == ["user", "assistant", "user"]


async def test_websocket_reconnect_store_false_recovery(scripted_gateway: ScriptedGateway) -> None:
    client, *_ = scripted_gateway
    async with client.ws_connect("/v1/responses") as socket:
        first = await over_websocket(socket, input="Remember copper.", store=False)
    async with client.ws_connect("/v1/responses") as socket:
        lost = await over_websocket(socket, input="Which?", store=False, previous_response_id=first["id"])
        assert (lost["status"], lost["error"]["code"]) == (400, "previous_response_not_found")
        assert (await over_websocket(socket, input="Fresh start.", store=False))["status"] == "completed"


async def test_websocket_previous_response_not_found(scripted_gateway: ScriptedGateway) -> None:
    async with scripted_gateway[0].ws_connect("/v1/responses") as socket:
        told = await over_websocket(socket, input="x", store=False, previous_response_id="resp_missing_12345")
    assert (told["type"], told["error"]["code"]) == ("error", "previous_response_not_found")


async def test_websocket_failed_continuation_evicts_cache(scripted_gateway: ScriptedGateway) -> None:
    orphan = {"type": "function_call_output", "call_id": "call_without_a_call", "output": "a result"}
    async with scripted_gateway[0].ws_connect("/v1/responses") as socket:
        first = await over_websocket(socket, input="Remember ember.", store=False)
        failed = await over_websocket(socket, input=[orphan], store=False, previous_response_id=first["id"])
        assert (failed["type"], failed["status"]) == ("error", 400)
        assert failed["error"]["param"] == "input.0.call_id"
        again = await over_websocket(socket, input="Which?", store=False, previous_response_id=first["id"])
        assert again["error"]["code"] == "previous_response_not_found"


async def test_websocket_compact_new_chain(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    compacted = await post(client, path="/compact", input=[user("The code word is ember."), user("Remember it.")])
    async with client.ws_connect("/v1/responses") as socket:
        told = await over_websocket(socket, input=[*compacted["output"], user("Which is it?")], store=False)
    assert (told["status"], told["previous_response_id"]) == ("completed", None)
    assert "Summary" in server.asked[-1]["messages"][-2]["content"]


async def test_system_prompt(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    pirate = {"type": "message", "role": "system", "content": "You are a pirate."}
    await completed(client, pirate, user("Say hello."))
    assert server.asked[-1]["messages"][0] == {"role": "system", "content": "You are a pirate."}


async def test_tool_calling(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.script = [calls({"name": "get_weather", "arguments": '{"location": "San Francisco, CA"}'})]
    told = await completed(client, user("What's the weather like in San Francisco?"), tools=[WEATHER])
    assert [item["type"] for item in told["output"]] == ["function_call"]


async def test_image_input(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    parts = [{"type": "input_text", "text": "What is this?"}, {"type": "input_image", "image_url": IMAGE}]
    await completed(client, user(parts))
    sent = server.asked[-1]["messages"][0]["content"]
    assert sent[1] == {"type": "image_url", "image_url": {"url": IMAGE}}


async def test_multi_turn(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    history = [user("My name is Alice."), {"type": "message", "role": "assistant", "content": "Hello Alice!"}]
    await completed(client, *history, user("What is my name?"))
    assert len(server.asked[-1]["messages"]) == 3


async def test_compact_response(scripted_gateway: ScriptedGateway) -> None:
    told = await post(scripted_gateway[0], path="/compact", input=[user("Hello"), user("Plan a trip.")])
    spec.CompactResource.model_validate_json(json.dumps(told))
    assert told["output"][-1]["type"] == "compaction"


async def test_compact_missing_model(scripted_gateway: ScriptedGateway) -> None:
    async with scripted_gateway[0].post("/v1/responses/compact", json={"input": "Hello"}) as answer:
        assert answer.status == 400
        assert (await answer.json())["error"]["param"] == "model"
