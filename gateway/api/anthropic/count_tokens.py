"""POST /v1/messages/count_tokens."""

import dataclasses

from aiohttp import web

from compat.anthropic import AnthropicErrorBody, CountTokensRequest, TokenCountAnswer
from gateway.api import pipeline
from gateway.api.anthropic.messages_builder import MessagesSpecBuilder, chat_of
from gateway.api.anthropic.signature import ThinkingSigner
from gateway.api.anthropic.token_estimate import estimate_tokens
from gateway.api.openai.tokenize import check_text_size, texts_of
from gateway.api.services import models_of
from gateway.http.json_body import json_response, read_json
from gateway.http.middleware.auth import TENANT
from gateway.http.openapi import operation
from gateway.prompts.served_models import ServedModel
from gateway.runtime.json_codec import encode_json

routes = web.RouteTableDef()


@routes.post("/v1/messages/count_tokens")
@operation(TokenCountAnswer, body=CountTokensRequest, errors=(404, 529), error=AnthropicErrorBody)
async def count_tokens(request: web.Request) -> web.Response:
    """Return the number of tokens of a Messages request's prompt. It may exceed the model's window.

    The number is exact, except for models on an upstream server that receives messages: for them it is an estimate.
    """
    body = await read_json(request, CountTokensRequest)
    model = await models_of(request).get_or_substitute(body.model)
    raw = await request.read()
    tenant = request[TENANT]
    count = await pipeline.offload_if_long(lambda: _count(body, model, tenant), len(raw), model)
    return json_response(TokenCountAnswer(count))


def _count(body: CountTokensRequest, model: ServedModel, tenant: str) -> int:
    """Return the number of tokens. Raises RequestError if the text is too long to be counted."""
    if not model.is_passthrough:
        model = dataclasses.replace(model, window=None, prompts=model.prompts.unbounded())
    builder = MessagesSpecBuilder(body, chat_of(body), ThinkingSigner(tenant).verify).builder_for(model)
    if not model.is_passthrough:
        texts = [text for message in builder.body.messages for text in texts_of(message)]
        tools = encode_json([tool.model_dump() for tool in builder.body.tools or ()]).decode()
        check_text_size([*texts, tools], "messages")
    return estimate_tokens(builder.build(model).segments)
