"""POST /tokenize and /detokenize, as in vLLM."""

import dataclasses
from collections.abc import Sequence

from aiohttp import web

from compat.openai import Detokenized, DetokenizeRequest, Message, TokenizeRequest, Tokens
from engine.sampling_params import SamplingParams
from gateway.api.openai.chat import chat_prompt
from gateway.api.sampling import check_tokens
from gateway.api.services import models_of
from gateway.errors import RequestError
from gateway.graph.segments import Slot, Text
from gateway.http.json_body import json_response, read_json
from gateway.http.openapi import operation
from gateway.prompts.served_models import ServedModel
from gateway.runtime.executors import offload

routes = web.RouteTableDef()

_ANSWER = Slot(None, SamplingParams())
_MAX_BYTES = 1_000_000
"""Maximum size of the text in one request, in bytes of UTF-8. It may be longer than the model's window."""
_MAX_TOKENS = 1_000_000
"""Maximum number of tokens in one request to detokenise."""
_MAX_INLINE = 4_000
"""Number of characters or tokens from which the work is done in a thread."""


@routes.post("/tokenize")
@routes.post("/v1/tokenize")
@operation(Tokens, body=TokenizeRequest, errors=(404, 503))
async def tokenize(request: web.Request) -> web.Response:
    """Return the tokens of a prompt. The text may have at most 1,000,000 bytes, and may exceed the model's window."""
    body = await read_json(request, TokenizeRequest)
    model = _require_tokens(await models_of(request).find_or_only(body.model))
    _check_size(body)
    length = len(await request.read())
    if length < _MAX_INLINE:
        return json_response(_tokenize(body, model))
    return json_response(await offload(lambda: _tokenize(body, model), length))


def _check_size(body: TokenizeRequest) -> None:
    """Raise RequestError if the text is too long."""
    if body.messages is None:
        check_text_size([body.prompt or ""], "prompt")
    else:
        check_text_size([part for message in body.messages for part in texts_of(message)], "messages")


def check_text_size(texts: Sequence[str], param: str) -> None:
    """Raise RequestError if texts are too long to be tokenised for one request. `param`: the field with them."""
    size = sum(map(len, texts))
    if size <= _MAX_BYTES:
        size = sum(len(text.encode(errors="surrogatepass")) for text in texts)
    if size > _MAX_BYTES:
        message = f"the text has at least {size} bytes; at most {_MAX_BYTES} bytes can be tokenised in one request"
        raise RequestError(400, message, code="string_above_max_length", param=param)


def texts_of(message: Message) -> list[str]:
    """Return the texts of a message that a chat template may write: content, reasoning and arguments of tool calls."""
    parts = message.parts
    texts = [parts] if isinstance(parts, str) else [part for part in parts or () if isinstance(part, str)]
    return [*texts, message.reasoning_text, *(call.function.arguments for call in message.tool_calls or ())]


def _tokenize(body: TokenizeRequest, model: ServedModel) -> Tokens:
    tokens = _tokens(body, dataclasses.replace(model, prompts=model.prompts.unbounded()))
    answer: Tokens = {"count": len(tokens), "max_model_len": model.window, "tokens": tokens}
    if body.return_token_strs:
        answer["token_strs"] = [model.token_bytes(token).decode(errors="replace") for token in tokens]
    return answer


def _require_tokens(model: ServedModel) -> ServedModel:
    """Return the model. Raises RequestError if its tokens are unknown to this server."""
    if model.is_passthrough:
        message = f"{model.id} runs on an upstream server that receives messages; its tokens are unknown to this server"
        raise RequestError(400, message, code="unsupported_by_engine", param="model")
    return model


def _tokens(body: TokenizeRequest, model: ServedModel) -> list[int]:
    if body.messages is not None:
        prompt = chat_prompt(
            model,
            body.messages,
            _ANSWER,
            add_generation_prompt=body.add_generation_prompt is not False,
            continue_final_message=bool(body.continue_final_message),
            template_options=body.chat_template_kwargs,
        )
    else:
        prompt = model.prompts.completion(body.prompt or "", _ANSWER, add_bos=body.add_special_tokens is not False)
    return [token for segment in prompt.segments if isinstance(segment, Text) for token in segment.tokens]


@routes.post("/detokenize")
@routes.post("/v1/detokenize")
@operation(Detokenized, body=DetokenizeRequest, errors=(404, 503))
async def detokenize(request: web.Request) -> web.Response:
    """Return the text of at most 1,000,000 tokens."""
    body = await read_json(request, DetokenizeRequest)
    model = _require_tokens(await models_of(request).find_or_only(body.model))
    count = len(body.tokens)
    if count > _MAX_TOKENS:
        message = f"the request has {count} tokens; at most {_MAX_TOKENS} can be detokenised in one request"
        raise RequestError(400, message, code="invalid_value", param="tokens")
    if count < _MAX_INLINE:
        return json_response({"prompt": _detokenize(body.tokens, model)})
    return json_response({"prompt": await offload(lambda: _detokenize(body.tokens, model), count)})


def _detokenize(tokens: list[int], model: ServedModel) -> str:
    """Return the text of tokens. Raises RequestError if one of them is not in the model's vocabulary."""
    check_tokens(model, tokens, "tokens")
    return model.known_tokenizer.decode(tokens, skip_special=False)
