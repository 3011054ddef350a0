"""POST /tokenize and /detokenize, as vLLM has them; and /v1/embeddings, which is refused in words."""

import asyncio

from aiohttp import web

from compat.openai import Detokenized, DetokenizeRequest, TokenizeRequest, Tokens
from gateway.api.calls import check_tokens
from gateway.api.chat import chat_prompt
from gateway.api.services import SERVICES
from gateway.errors import RequestError
from gateway.graph.call import Sampling, Slot, Text
from gateway.http.bodies import json_response, read_json
from gateway.http.openapi import operation
from gateway.models import ServedModel

routes = web.RouteTableDef()

_ANSWER = Slot(None, Sampling())


@routes.post("/tokenize")
@routes.post("/v1/tokenize")
@operation(Tokens, body=TokenizeRequest, errors=(404, 503))
async def tokenize(request: web.Request) -> web.Response:
    """The tokens that a prompt would have."""
    body = await read_json(request, TokenizeRequest)
    model = _with_tokens(await request.app[SERVICES].models.one(body.model))
    tokens = await asyncio.to_thread(_tokens, body, model)
    texts = [model.token_bytes(token).decode(errors="replace") for token in tokens]
    answer: Tokens = {"count": len(tokens), "max_model_len": model.window, "tokens": tokens}
    if body.return_token_strs:
        answer["token_strs"] = texts
    return json_response(answer)


def _with_tokens(model: ServedModel) -> ServedModel:
    """The model, if its tokens are known here. Raises RequestError."""
    if model.tokenizer.passes_on:
        message = f"{model.id} runs on an engine elsewhere that is given messages; its tokens are not known here"
        raise RequestError(400, message, code="unsupported_by_engine", param="model")
    return model


def _tokens(body: TokenizeRequest, model: ServedModel) -> list[int]:
    if body.messages is not None:
        prompt = chat_prompt(
            model,
            body.messages,
            _ANSWER,
            opens=body.add_generation_prompt is not False,
            continues=bool(body.continue_final_message),
            options=body.chat_template_kwargs,
        )
    else:
        prompt = model.prompts.completion(body.prompt or "", _ANSWER, begins=body.add_special_tokens is not False)
    return [token for segment in prompt.segments if isinstance(segment, Text) for token in segment.tokens]


@routes.post("/detokenize")
@routes.post("/v1/detokenize")
@operation(Detokenized, body=DetokenizeRequest, errors=(404, 503))
async def detokenize(request: web.Request) -> web.Response:
    """The text that tokens have."""
    body = await read_json(request, DetokenizeRequest)
    model = _with_tokens(await request.app[SERVICES].models.one(body.model))
    check_tokens(model, body.tokens, "tokens")
    return json_response({"prompt": model.tokenizer.decode(body.tokens, skip_special=False)})


@routes.post("/v1/embeddings")
@operation(errors=(400,))
async def embeddings(request: web.Request) -> web.Response:
    """Refuses."""
    raise RequestError(
        400, "the models here make text; they have no embeddings", code="unsupported_value", param="model"
    )
