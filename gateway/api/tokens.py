"""POST /tokenize and /detokenize, as vLLM has them; and /v1/embeddings, which is refused in words."""

import asyncio
from collections.abc import Sequence

from aiohttp import web

from compat.openai import DetokenizeRequest, TokenizeRequest
from gateway.api.chat import chat_prompt
from gateway.api.services import SERVICES
from gateway.errors import RequestError
from gateway.graph.call import Sampling, Slot, Text
from gateway.http.bodies import json_response, read_json
from gateway.models import ServedModel

routes = web.RouteTableDef()

_ANSWER = Slot(None, Sampling())


@routes.post("/tokenize")
@routes.post("/v1/tokenize")
async def tokenize(request: web.Request) -> web.Response:
    """The tokens that a prompt would have."""
    body = await read_json(request, TokenizeRequest)
    model = await request.app[SERVICES].models.one(body.model)
    tokens = await asyncio.to_thread(_tokens, body, model)
    texts = [model.tokenizer.token_bytes(token).decode(errors="replace") for token in tokens]
    answer = {"count": len(tokens), "max_model_len": model.window, "tokens": tokens}
    return json_response(answer | {"token_strs": texts} if body.return_token_strs else answer)


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
async def detokenize(request: web.Request) -> web.Response:
    """The text that tokens have."""
    body = await read_json(request, DetokenizeRequest)
    model = await request.app[SERVICES].models.one(body.model)
    known(body.tokens, model, "tokens")
    return json_response({"prompt": model.tokenizer.decode(body.tokens, skip_special=False)})


@routes.post("/v1/embeddings")
async def embeddings(request: web.Request) -> web.Response:
    """Refuses."""
    raise RequestError(
        400, "the models here make text; they have no embeddings", code="unsupported_value", param="model"
    )


def known(tokens: Sequence[int], model: ServedModel, where: str) -> None:
    """Raises RequestError if one of the tokens is none of the model's."""
    bad = next((token for token in tokens if token >= model.vocabulary), None)
    if bad is not None:
        message = f"token {bad} is outside the vocabulary of {model.vocabulary}"
        raise RequestError(400, message, code="invalid_value", param=where)
