"""Requests of the Responses API in which one value is wrong, missing or huge: no server error, over HTTP and WebSocket."""

import io
import json
from typing import Any

import pytest

from compat.openai.responses.opaque import write_compaction, write_reasoning
from tests.fakes.call_counter import CallCounter
from tests.fakes.hostile_values import MAX_CALLS, VALUES, places, with_value
from tests.fakes.in_process_gateway import ScriptedGateway

FUNCTION = {
    "type": "function",
    "name": "read",
    "description": "d",
    "strict": False,
    "parameters": {"type": "object", "properties": {"a": {"type": "string"}}},
    "defer_loading": False,
    "output_schema": {"type": "object"},
}
LARK = {"type": "grammar", "syntax": "lark", "definition": 'start: "a"+'}
REGEX = {"type": "grammar", "syntax": "regex", "definition": "a+"}
CUSTOM = {"type": "custom", "name": "edit", "description": "d", "format": LARK}
NAMESPACE = {"type": "namespace", "name": "n", "description": "d", "tools": [FUNCTION, CUSTOM]}
TEXT = {"type": "input_text", "text": "x"}
TOOLS = [
    FUNCTION,
    CUSTOM,
    {**CUSTOM, "name": "move", "format": REGEX},
    NAMESPACE,
    {"type": "tool_search", "execution": "client", "description": "d", "parameters": {"type": "object"}},
    {"type": "web_search", "filters": {"allowed_domains": ["x"]}},
]
ITEMS: list[dict[str, Any]] = [
    {"type": "message", "role": "user", "content": [TEXT, {"type": "input_image", "image_url": "x", "detail": "low"}]},
    {"type": "message", "role": "assistant", "content": "x", "phase": "commentary", "status": "completed"},
    {"type": "function_call", "call_id": "a", "name": "read", "arguments": "{}", "namespace": "n", "caller": {}},
    {"type": "function_call_output", "call_id": "a", "output": [TEXT]},
    {"type": "custom_tool_call", "call_id": "b", "name": "edit", "input": "a", "namespace": "n", "id": "ctc_1"},
    {"type": "custom_tool_call_output", "call_id": "b", "output": "x"},
    {"type": "tool_search_call", "call_id": "c", "arguments": {"query": "x"}, "execution": "client"},
    {"type": "tool_search_output", "call_id": "c", "tools": [FUNCTION, NAMESPACE], "status": "completed"},
    {"type": "additional_tools", "role": "developer", "tools": [{**CUSTOM, "name": "more"}]},
    {"type": "reasoning", "summary": [], "content": [], "encrypted_content": write_reasoning("x")},
    {"type": "compaction", "encrypted_content": write_compaction("x")},
    {"type": "web_search_call", "id": "ws_1", "action": {}},
]
REQUEST: dict[str, Any] = {
    "model": "fake",
    "input": ITEMS,
    "tools": TOOLS,
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "read"}]},
    "reasoning": {"effort": "none", "summary": "auto", "context": "auto"},
    "text": {"format": {"type": "text"}, "verbosity": "low"},
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_options": {"mode": "implicit", "ttl": "30m"},
    "client_metadata": {"a": "b"},
    "store": False,
}
PLACES = [place for place in places(REQUEST) if place != ("model",)]


async def test_the_request_itself_is_accepted(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    async with client.post("/v1/responses", json=REQUEST) as answer:
        assert answer.status == 200, await answer.text()
    assert len(server.asked[-1]["messages"]) == 8


@pytest.mark.parametrize("number", range(len(VALUES)))
async def test_a_wrong_value_is_no_server_error(scripted_gateway: ScriptedGateway, number: int) -> None:
    client, *_ = scripted_gateway
    statuses = set()
    for index, place in enumerate(PLACES):
        path = ("/v1/responses", "/v1/responses/compact", "/v1/conversations")[index % 3]
        body = with_value(REQUEST, place, VALUES[number])
        if path.endswith("compact"):
            body = {name: value for name, value in body.items() if name in ("model", "input")}
        elif path.endswith("conversations"):
            body = {"items": body.get("input")}
        data, headers = io.BytesIO(json.dumps(body).encode()), {"Content-Type": "application/json"}
        with CallCounter() as calls:
            async with client.post(path, data=data, headers=headers) as answer:
                told = await answer.json()
        assert answer.status < 500, (place, told)
        assert calls.count < MAX_CALLS, place
        if answer.status >= 400:
            assert told["error"]["message"], place
        statuses.add(answer.status)
    assert statuses & {200, 400}


async def test_wrong_messages_leave_the_websocket_open(scripted_gateway: ScriptedGateway) -> None:
    client, *_ = scripted_gateway
    async with client.ws_connect("/v1/responses") as socket:
        for index, place in enumerate(PLACES):
            body = {"type": "response.create", **with_value(REQUEST, place, VALUES[index % len(VALUES)])}
            await socket.send_str(json.dumps(body))
            while True:
                event = json.loads((await socket.receive(10)).data)
                if event["type"] == "error":
                    assert 400 <= event["status"] < 500, (place, event)
                    break
                if event["type"] in ("response.completed", "response.failed"):
                    break
