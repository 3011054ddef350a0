"""Behaviours of a scripted server with Anthropic's API. The events are made with the types of Anthropic's package."""

import json
from collections.abc import Sequence
from typing import Any

from aiohttp import web
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from tests.fakes.scripted_server import Behaviour

USAGE = {
    "input_tokens": 10,
    "cache_read_input_tokens": 15,
    "cache_creation_input_tokens": 5,
    "output_tokens": 9,
    "output_tokens_details": {"thinking_tokens": 4},
}
_EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)

Block = dict[str, Any]


def text(said: str) -> Block:
    return {"type": "text", "text": said}


def thinking(said: str) -> Block:
    return {"type": "thinking", "thinking": said, "signature": "theirs"}


def call(name: str, **input: Any) -> Block:
    return {"type": "tool_use", "id": f"toolu_{name}", "name": name, "input": input}


def message_of(*blocks: Block, reason: str = "end_turn", stop_sequence: str | None = None) -> dict[str, Any]:
    """Return a whole message with these blocks."""
    fields = {"id": "msg_1", "type": "message", "role": "assistant", "model": "fake", "usage": USAGE}
    told = {**fields, "content": list(blocks), "stop_reason": reason, "stop_sequence": stop_sequence}
    Message.model_validate(told)
    return told


def events_of(message: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the events of a message, with each text in two pieces."""
    started = {**message, "content": [], "stop_reason": None, "usage": {**USAGE, "output_tokens": 1}}
    events: list[dict[str, Any]] = [{"type": "message_start", "message": started}]
    for index, block in enumerate(message["content"]):
        match block["type"]:
            case "text":
                empty, kind, field, content = {**block, "text": ""}, "text_delta", "text", block["text"]
            case "thinking":
                empty, kind, field = {**block, "thinking": "", "signature": ""}, "thinking_delta", "thinking"
                content = block["thinking"]
            case _:
                empty, kind, field = {**block, "input": {}}, "input_json_delta", "partial_json"
                content = json.dumps(block["input"]) if block["input"] else ""
        events.append({"type": "content_block_start", "index": index, "content_block": empty})
        half = len(content) // 2
        for piece in (content[:half], content[half:]):
            events.append({"type": "content_block_delta", "index": index, "delta": {"type": kind, field: piece}})
        if block["type"] == "thinking":
            signed = {"type": "signature_delta", "signature": block["signature"]}
            events.append({"type": "content_block_delta", "index": index, "delta": signed})
        events.append({"type": "content_block_stop", "index": index})
    delta = {"stop_reason": message["stop_reason"], "stop_sequence": message["stop_sequence"]}
    events += [{"type": "message_delta", "delta": delta, "usage": USAGE}, {"type": "message_stop"}]
    for event in events:
        _EVENT.validate_python(event)
    events.insert(1, {"type": "ping"})
    return events


async def send_events(request: web.Request, events: Sequence[dict[str, Any]]) -> web.StreamResponse:
    """Stream events with their names."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    for event in events:
        await response.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
    return response


def answers(*blocks: Block, reason: str = "end_turn", stop_sequence: str | None = None) -> Behaviour:
    """Return a behaviour that streams a message with these blocks."""

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return await send_events(request, events_of(message_of(*blocks, reason=reason, stop_sequence=stop_sequence)))

    return behave


def answers_whole(*blocks: Block, reason: str = "end_turn") -> Behaviour:
    """Return a behaviour that ignores `stream`."""

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response(message_of(*blocks, reason=reason))

    return behave


def fails(kind: str, message: str = "no", *, status: int | None = None) -> Behaviour:
    """Return a behaviour that answers with an error: with a status, or as an event after the first ones."""
    error = {"type": "error", "error": {"type": kind, "message": message}, "request_id": "r"}

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if status is not None:
            return web.json_response(error, status=status)
        return await send_events(request, [*events_of(message_of(text("a")))[:3], error])

    return behave
