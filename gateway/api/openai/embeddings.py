"""POST /v1/embeddings: by an engine of this project, or by an upstream server."""

import base64
import struct
from collections.abc import Iterator, Sequence

import msgspec
from aiohttp import web

from compat.openai.embeddings import Embedding, EmbeddingUsage, OwnEmbeddingRequest
from compat.openai.relayed import EmbeddingRequest
from gateway.api.openai.relayed import relay_json
from gateway.api.pipeline import offload_if_long
from gateway.api.sampling import check_tokens
from gateway.api.services import SERVICES
from gateway.errors import RequestError
from gateway.http.json_body import read_json, validate_async
from gateway.http.json_stream import json_list, stream_json
from gateway.http.middleware.auth import TENANT
from gateway.http.openapi import operation
from gateway.prompts.served_models import ServedModel
from gateway.runtime.json_codec import decode_json, encode_json
from gateway.telemetry.request_span import request_span

routes = web.RouteTableDef()


@routes.post("/v1/embeddings")
@operation(body=EmbeddingRequest, others={"application/json": None}, errors=(404, 429, 503))
async def create(request: web.Request) -> web.StreamResponse:
    """Return the embeddings of texts."""
    asked = await read_json(request, EmbeddingRequest)
    services, tenant = request.app[SERVICES], request[TENANT]
    model = await services.models_of(tenant).get(asked.model)
    if not model.embedding:
        return await relay_json(request, EmbeddingRequest)
    raw = await request.read()
    body = await validate_async(request, decode_json(raw), OwnEmbeddingRequest, raw)
    size = body.dimensions or model.embedding
    if size > model.embedding:
        message = f"dimensions is {size}, but embeddings of {model.id} have {model.embedding} values"
        raise RequestError(400, message, code="invalid_value", param="dimensions")
    services.scheduler.admit(tenant, continues=False)
    texts = await offload_if_long(lambda: _tokens_of(body, model), len(raw), model)
    total = sum(map(len, texts))
    with request_span(services.exporter, "embeddings", model.id, request.headers.get("traceparent")) as span:
        if span is not None:
            span.input_tokens = total
        async with services.accounts.relayed(tenant, model.id, total) as id:
            vectors = await services.embedder.embed(model.id, texts, tenant)
            services.settle_request(tenant, id, model.id, "", total)
        return await stream_json(request, _answer(body, model, vectors, size, total))


def _tokens_of(body: OwnEmbeddingRequest, model: ServedModel) -> list[list[int]]:
    """Return the tokens of each text. Raises RequestError if a text does not fit into the model's window."""
    texts = []
    for index, each in enumerate(body.input):
        where = f"input.{index}"
        if isinstance(each, str):
            tokens = model.known_tokenizer.encode_document(each, model.window)
        else:
            check_tokens(model, each, where)
            tokens = each
        if model.window is not None and len(tokens) > model.window:
            message = f"this model's window is {model.window} tokens, but the text has at least {len(tokens)} tokens"
            raise RequestError(400, message, code="context_length_exceeded", param=where)
        texts.append(tokens)
    return texts


def _answer(
    body: OwnEmbeddingRequest, model: ServedModel, vectors: Sequence[bytes], size: int, tokens: int
) -> Iterator[bytes]:
    """Yield the answer in pieces: a thousand embeddings are some megabytes."""
    yield b'{"object":"list",'
    items = (
        Embedding(index, _written(_shortened(vector, size, normalizes=model.normalizes), body.encoding_format))
        for index, vector in enumerate(vectors)
    )
    yield from json_list("data", items)
    usage = EmbeddingUsage(tokens, tokens)
    yield b"," + encode_json({"model": model.id, "usage": msgspec.to_builtins(usage)})[1:]


def _shortened(vector: bytes, size: int, *, normalizes: bool) -> bytes:
    """Return the first `size` values of an embedding in float32, with length 1 if the embedding has it."""
    if len(vector) == 4 * size:
        return vector
    values = struct.unpack(f"<{size}f", vector[: 4 * size])
    length = sum(value * value for value in values) ** 0.5
    if normalizes and length:
        values = tuple(value / length for value in values)
    return struct.pack(f"<{size}f", *values)


def _written(vector: bytes, encoding: str) -> list[float] | str:
    if encoding == "base64":
        return base64.b64encode(vector).decode()
    return list(struct.unpack(f"<{len(vector) // 4}f", vector))
