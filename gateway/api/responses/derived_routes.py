"""POST /v1/responses/input_tokens, and POST /v1/responses/compact."""

import time
from typing import Any

from aiohttp import web

from compat.openai.responses import (
    CompactedResponse,
    CompactionBody,
    InputTokens,
    ResponseRequest,
    input_items_with_ids,
    write_compaction,
)
from compat.openai.responses.derived import CompactRequest, InputTokensRequest
from gateway.api import pipeline
from gateway.api.responses.builder import response_usage
from gateway.api.responses.creation import ResponseCall, build_call
from gateway.api.services import models_of
from gateway.errors import FailedCall, RequestError
from gateway.graph.errors import Failure
from gateway.graph.ids import new_id
from gateway.graph.segments import Text
from gateway.http.json_body import json_response, read_json, validate_async
from gateway.http.openapi import operation
from gateway.runtime.json_codec import decode_json, encode_json

routes = web.RouteTableDef()

_SUMMARY_PROMPT = (
    "Summarize the conversation above, so that another assistant can continue it without reading it. Keep the aim, all "
    "decisions, facts, names, numbers and file paths that matter, what was done, and the open steps. Write only the "
    "summary."
)
_SUMMARY_TOKENS = 2_048
"""Maximum number of tokens of a summary."""
_KEPT_CHARACTERS = 64_000
"""Maximum length of the user's texts that a compacted conversation keeps, in characters."""


@routes.post("/v1/responses/input_tokens")
@operation(InputTokens, body=InputTokensRequest, errors=(404, 413, 429, 503))
async def input_tokens(request: web.Request) -> web.Response:
    """Return the number of tokens of the prompt that a response with this input would have."""
    body = await read_json(request, InputTokensRequest)
    model = await models_of(request).find_or_only(body.model)
    if model.is_passthrough:
        message = f"{model.id} runs on an upstream server that receives messages; its tokens are unknown to this server"
        raise RequestError(400, message, code="unsupported_by_engine", param="model")
    content = _without_hints(decode_json(await request.read()))
    call = await _build_call(request, {**content, "model": model.id})
    tokens = sum(len(segment.tokens) for segment in call.spec.segments if isinstance(segment, Text))
    return json_response(InputTokens(tokens))


@routes.post("/v1/responses/compact")
@operation(CompactedResponse, body=CompactRequest, errors=(404, 409, 410, 413, 422, 424, 429, 503))
async def compact(request: web.Request) -> web.Response:
    """Return an item that replaces a conversation: the user's newest texts, and a summary that the model writes."""
    body = await read_json(request, CompactRequest)
    content = _without_hints(decode_json(await request.read()))
    sent = content.get("input") or []
    items = [{"role": "user", "content": sent}] if isinstance(sent, str) else sent
    if not items and body.previous_response_id is None:
        raise RequestError(400, "input: input has no message", code="invalid_value", param="input")
    limits = {"max_output_tokens": _SUMMARY_TOKENS, "store": False}
    question = {"role": "user", "content": _SUMMARY_PROMPT}
    call = await _build_call(request, {**content, **limits, "input": [*items, question]})
    if call.target.scope.is_deferred:
        raise RequestError(400, "a compaction cannot be deferred", code="unsupported_with_semantic")
    generated = await pipeline.generate(call.target, call.spec, call.facts)
    summary = (generated.output.value or "").strip()
    if not summary:
        raise FailedCall(Failure("engine_failed", "the model wrote no summary"))
    size = len(call.raw) + call.turn.size
    kept = await pipeline.offload_if_long(lambda: _newest_user_texts(call), size, call.target.model)
    text = "\n\n".join([*(f"The user wrote: {each}" for each in kept), summary])
    id = new_id(24)
    compacted = CompactedResponse(
        id=f"resp_{id}",
        created_at=int(time.time()),
        output=[CompactionBody(id=f"cmp_{id}", encrypted_content=write_compaction(text))],
        usage=response_usage([generated.usage]),
    )
    return json_response(compacted)


def _without_hints(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a request without the fields that a request for a response does not have."""
    return {name: value for name, value in content.items() if name in ResponseRequest.model_fields}


async def _build_call(request: web.Request, content: dict[str, Any]) -> ResponseCall:
    """Return the call for a response to a request with this content. Raises RequestError and GraphError."""
    raw = encode_json(content)
    return await build_call(request, await validate_async(request, content, ResponseRequest, raw), raw)


def _newest_user_texts(call: ResponseCall) -> list[str]:
    """Return the newest texts of the user in the conversation before a question."""
    inputs: list[Any] = [decode_json(turn.input) for turn in call.turn.previous_turns]
    texts = [
        part["text"]
        for input in (*inputs, decode_json(call.raw)["input"][:-1])
        for item in input_items_with_ids(input, "")
        if item["type"] == "message" and item["role"] == "user"
        for part in item["content"]
        if part["type"] == "input_text" and part["text"]
    ]
    kept: list[str] = []
    size = 0
    for text in reversed(texts):
        size += len(text)
        if size > _KEPT_CHARACTERS:
            break
        kept.append(text)
    return kept[::-1]
