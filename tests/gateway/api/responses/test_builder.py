"""gateway/api/responses/builder.py: responses and their events have all fields of Open Responses (openresponses.org)."""

import copy
import json
from typing import Any

import openresponses_types as spec
import pytest
from pydantic import BaseModel

from tests.fakes.in_process_gateway import ScriptedGateway
from tests.fakes.scripted_server import breaks_off, says
from tests.gateway.api.responses.test_routes import CALL, LOOK, calls

EVENTS: dict[str, type[BaseModel]] = {
    "response.created": spec.ResponseCreatedStreamingEvent,
    "response.queued": spec.ResponseQueuedStreamingEvent,
    "response.in_progress": spec.ResponseInProgressStreamingEvent,
    "response.completed": spec.ResponseCompletedStreamingEvent,
    "response.failed": spec.ResponseFailedStreamingEvent,
    "response.incomplete": spec.ResponseIncompleteStreamingEvent,
    "response.output_item.added": spec.ResponseOutputItemAddedStreamingEvent,
    "response.output_item.done": spec.ResponseOutputItemDoneStreamingEvent,
    "response.content_part.added": spec.ResponseContentPartAddedStreamingEvent,
    "response.content_part.done": spec.ResponseContentPartDoneStreamingEvent,
    "response.output_text.delta": spec.ResponseOutputTextDeltaStreamingEvent,
    "response.output_text.done": spec.ResponseOutputTextDoneStreamingEvent,
    "response.function_call_arguments.delta": spec.ResponseFunctionCallArgumentsDeltaStreamingEvent,
    "response.function_call_arguments.done": spec.ResponseFunctionCallArgumentsDoneStreamingEvent,
}
SCHEMA = {"type": "json_schema", "name": "n", "schema": {"type": "object"}}
REQUESTS: list[dict[str, Any]] = [
    {},
    {"temperature": 0, "top_p": 0, "presence_penalty": 1, "frequency_penalty": -1, "max_output_tokens": 9},
    {
        "instructions": "Be short.",
        "metadata": {"a": "b"},
        "user": "u",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
    },
    {"tools": [LOOK], "tool_choice": "auto", "parallel_tool_calls": False, "max_tool_calls": 3},
    {"tools": [LOOK], "tool_choice": {"type": "function", "name": "look"}},
    {"text": {"format": {"type": "json_object"}, "verbosity": "low"}, "reasoning": {"effort": "low"}},
    {"text": {"format": SCHEMA}},
    {"text": {"format": {**SCHEMA, "description": "d", "strict": True}}},
    {"text": {"verbosity": None}, "service_tier": "flex", "truncation": "auto", "store": False},
    {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
]
PLAIN = {"temperature", "top_p", "presence_penalty", "frequency_penalty", "max_output_tokens", "max_tool_calls", "user"}
"""Fields of a request that the response repeats unchanged."""


def conforms(told: dict[str, Any], type: type[BaseModel] = spec.ResponseResource) -> None:
    """Fail unless the object has all fields that the type requires. The package types a format's schema as null."""
    told = copy.deepcopy(told)
    response = told if type is spec.ResponseResource else told.get("response", {})
    format = response.get("text", {}).get("format", {})
    if format.get("type") == "json_schema":
        assert set(format) == {"type", "name", "description", "schema", "strict"}
        format["schema"] = None
    type.model_validate_json(json.dumps(told))
    if response:
        assert "safety_identifier" in response
        assert response["text"]["verbosity"] in ("low", "medium", "high")


@pytest.mark.parametrize("more", REQUESTS)
async def test_responses_have_all_fields(scripted_gateway: ScriptedGateway, more: dict[str, Any]) -> None:
    client, server, _ = scripted_gateway
    for script in (says("Hello", "."), says("Hel", finish="length"), calls(CALL, CALL)):
        server.script = [script]
        async with client.post("/v1/responses", json={"model": "fake", "input": "Hi", **more}) as answer:
            assert answer.status == 200
            told = await answer.json()
        conforms(told)
        assert {name: told[name] for name in PLAIN & set(more)} == {name: more[name] for name in PLAIN & set(more)}
        again = {name: told[name] for name in more if told.get(name) is not None and name != "top_logprobs"}
        async with client.post("/v1/responses", json={"model": "fake", "input": "Hi", **again}) as answer:
            assert answer.status == 200, "what a response says of its request can be asked again"


@pytest.mark.parametrize("more", REQUESTS)
async def test_events_have_all_fields(scripted_gateway: ScriptedGateway, more: dict[str, Any]) -> None:
    client, server, _ = scripted_gateway
    for script in (says("Hello", "."), says("Hel", finish="length"), calls(CALL, CALL), breaks_off("Hel")):
        server.script = [script]
        body = {"model": "fake", "input": "Hi", "stream": True, **more}
        async with client.post("/v1/responses", json=body) as answer:
            assert answer.status == 200
            lines = (await answer.text()).splitlines()
        events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
        assert len(events) > 4
        for event in events:
            conforms(event, EVENTS[event["type"]])


async def test_a_response_in_the_background_has_all_fields(scripted_gateway: ScriptedGateway) -> None:
    client, _, _ = scripted_gateway
    async with client.post("/v1/responses", json={"model": "fake", "input": "Hi", "background": True}) as answer:
        conforms(await answer.json())
