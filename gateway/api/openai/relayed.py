"""Rerank, score, speech, transcription and images: requests that upstream servers answer as they are."""

import math
import re
import time
from functools import partial

from aiohttp import ClientConnectionResetError, web

from compat.openai.relayed import (
    ImageEditForm,
    ImageRequest,
    RelayedBody,
    RerankRequest,
    ScoreRequest,
    SpeechRequest,
    TranscriptionForm,
)
from gateway.api.services import SERVICES, models_of
from gateway.errors import RequestError
from gateway.graph.call import CallState
from gateway.http.json_body import read_json
from gateway.http.middleware.auth import TENANT
from gateway.http.openapi import EVENTS, operation
from gateway.http.rate_headers import add_limit_headers
from gateway.http.slow_client import STREAM_SECONDS, wait_written
from gateway.http.sse import REQUEST_ID
from gateway.http.upload import Upload
from gateway.http_client.errors import ConnectionBroken
from gateway.relay import RelayedRequest
from gateway.runtime.executors import offload
from gateway.runtime.json_codec import decode_json, encode_json
from gateway.telemetry.metrics import count_relayed
from gateway.telemetry.request_span import RequestSpan, request_span

routes = web.RouteTableDef()

_JSON = "application/json"
_FORM = "multipart/form-data"
_ANY = "application/octet-stream"
_COPIED_HEADERS = ("content-type", "content-disposition", "content-encoding", "cache-control")
"""Headers of an upstream server's response that clients get."""
_ERRORS = (404, 429, 503)
_LONG_BYTES = 100_000
"""Size of a body from which it is encoded again in a thread."""
_TAIL_BYTES = 512
"""Size of the beginning and of the end of a JSON answer in which its usage is searched, in bytes. Most servers write it
last; vLLM's answers of rerank have it before the results."""
_TOKENS_PER_BYTE = 0.5
"""Assumed tokens of a byte of a request whose answer was not read to the end: a list of token ids has two bytes a
token at least. Texts have fewer tokens."""
_TOKENS = re.compile(rb'"prompt_tokens"\s*:\s*([0-9]{1,12})')
_TOTAL = re.compile(rb'"total_tokens"\s*:\s*([0-9]{1,12})')


@routes.post("/rerank")
@routes.post("/v1/rerank")
@routes.post("/v2/rerank")
@operation(body=RerankRequest, others={_JSON: None}, errors=_ERRORS)
async def rerank(request: web.Request) -> web.StreamResponse:
    """Sort documents by how well they answer a query."""
    return await relay_json(request, RerankRequest)


@routes.post("/score")
@routes.post("/v1/score")
@operation(body=ScoreRequest, others={_JSON: None}, errors=_ERRORS)
async def score(request: web.Request) -> web.StreamResponse:
    """Return the similarity of pairs of texts."""
    return await relay_json(request, ScoreRequest)


@routes.post("/v1/audio/speech")
@operation(body=SpeechRequest, others={_ANY: None, EVENTS: None}, errors=_ERRORS)
async def speech(request: web.Request) -> web.StreamResponse:
    """Read a text aloud. The audio is streamed while it is generated."""
    return await relay_json(request, SpeechRequest)


@routes.post("/v1/images/generations")
@operation(body=ImageRequest, others={_JSON: None, EVENTS: None}, errors=_ERRORS)
async def images(request: web.Request) -> web.StreamResponse:
    """Generate images for a prompt."""
    return await relay_json(request, ImageRequest)


@routes.post("/v1/images/edits")
@operation(body=ImageEditForm, media_type=_FORM, others={_JSON: None, EVENTS: None}, errors=_ERRORS)
async def image_edits(request: web.Request) -> web.StreamResponse:
    """Edit images as a prompt says. The form is streamed to the upstream server."""
    return await _relay_form(request)


@routes.post("/v1/audio/transcriptions")
@operation(body=TranscriptionForm, media_type=_FORM, others={_JSON: None, EVENTS: None}, errors=_ERRORS)
async def transcriptions(request: web.Request) -> web.StreamResponse:
    """Transcribe audio. The form is streamed to the upstream server."""
    return await _relay_form(request)


@routes.post("/v1/audio/translations")
@operation(body=TranscriptionForm, media_type=_FORM, others={_JSON: None, EVENTS: None}, errors=_ERRORS)
async def translations(request: web.Request) -> web.StreamResponse:
    """Translate audio into English. The form is streamed to the upstream server."""
    return await _relay_form(request)


async def relay_json(request: web.Request, schema: type[RelayedBody]) -> web.StreamResponse:
    """Pass a JSON body on to an upstream server of its model. Raises RequestError."""
    body = await read_json(request, schema)
    raw, model = await request.read(), await _admit(request, body.model)
    if model != body.model:  # an alias, which the upstream server does not know
        rename = partial(_with_model, raw, model)
        raw = rename() if len(raw) < _LONG_BYTES else await offload(rename, len(raw))
    return await _forward(request, RelayedRequest(request.path, model, request[TENANT], _JSON, raw))


def _with_model(raw: bytes, model: str) -> bytes:
    """Return a JSON body with another name of the model."""
    return encode_json({**decode_json(raw), "model": model})


async def _relay_form(request: web.Request) -> web.StreamResponse:
    upload = Upload(request, request.app[SERVICES].max_upload_bytes)
    model = await _admit(request, await upload.read_model())
    pieces = upload.pieces(model)
    return await _forward(request, RelayedRequest(request.path, model, request[TENANT], upload.content_type, pieces))


async def _admit(request: web.Request, name: str) -> str:
    """Return the model's own name. Raises RequestError if there is no such model, and Overloaded or Stopping if the
    request may not begin now."""
    services = request.app[SERVICES]
    model = await models_of(request).get(name)
    services.scheduler.admit(request[TENANT], continues=False)
    return model.id


async def _forward(request: web.Request, relayed: RelayedRequest) -> web.StreamResponse:
    """Send the request to an upstream server, and stream the server's answer to the client."""
    services, traceparent = request.app[SERVICES], request.headers.get("traceparent")
    with request_span(services.exporter, relayed.capability, relayed.model, traceparent) as span:
        if span is not None:
            relayed.headers = {"traceparent": span.context.traceparent}
        try:
            return await _stream(request, relayed, span)
        finally:
            if span is not None:
                span.engine = relayed.engine
            if relayed.tokens is None and relayed.engine is not None and services.ledger is not None:
                services.ledger.record_request(relayed.tenant, relayed.model, relayed.engine, 0, CallState.CANCELLED)


async def _stream(request: web.Request, relayed: RelayedRequest, span: RequestSpan | None) -> web.StreamResponse:
    began = time.monotonic()
    response: web.StreamResponse | None = None
    services, tenant = request.app[SERVICES], relayed.tenant
    bound = _token_bound(relayed.body)
    try:
        async with (
            services.accounts.relayed(tenant, relayed.model, bound) as id,
            services.relay.send(relayed) as answer,
        ):
            is_json = answer.headers.get("content-type", "").partition(";")[0].strip().lower() == _JSON
            try:
                headers = {name: answer.headers[name] for name in _COPIED_HEADERS if name in answer.headers}
                headers["x-request-id"] = request[REQUEST_ID]
                response = web.StreamResponse(status=answer.status, headers=headers)
                length = answer.headers.get("content-length", "")
                if length.isascii() and length.isdecimal():
                    response.content_length = int(length)
                add_limit_headers(request, response.headers)
                await response.prepare(request)
                size, head, tail = 0, b"", b""
                while chunk := await answer.next_chunk():
                    size += len(chunk)
                    if len(head) < _TAIL_BYTES:
                        head += chunk[:_TAIL_BYTES]
                    tail = (tail + chunk[-_TAIL_BYTES:])[-_TAIL_BYTES:]
                    await wait_written(request, response.write(chunk), STREAM_SECONDS)
                relayed.tokens = _tokens_in(head, tail) if is_json else 0
            except ConnectionBroken:
                raise  # the server's failure costs nothing
            except BaseException:
                # The client has disconnected. It may have most of the answer, so the server's work is not free.
                relayed.tokens = math.ceil(bound * _TOKENS_PER_BYTE) if is_json else 0
                services.settle_request(
                    tenant, id, relayed.model, relayed.engine or "", relayed.tokens, CallState.CANCELLED
                )
                raise
            services.settle_request(tenant, id, relayed.model, relayed.engine or "", relayed.tokens)
            await response.write_eof()
    except RequestError as error:
        if response is None or not response.prepared:
            raise
        if span is not None:
            span.code = error.code
        # as it would be without the gateway: the client's connection breaks off
        if request.transport is not None:
            request.transport.abort()
        raise ClientConnectionResetError("the upstream server broke off its answer") from error
    if span is not None:
        span.input_tokens = relayed.tokens or 0
    count_relayed(relayed.model, relayed.path, size, relayed.tokens or 0, time.monotonic() - began)
    return response


def _tokens_in(head: bytes, tail: bytes) -> int:
    """Return the tokens that the beginning or the end of an answer reports; 0 if both report none.

    Texts of the request that the answer repeats cannot match: their quotation marks are escaped.
    """
    tokens = _TOKENS.search(tail) or _TOKENS.search(head) or _TOTAL.search(tail) or _TOTAL.search(head)
    return 0 if tokens is None else int(tokens[1])


def _token_bound(body: object) -> int:
    """Return an upper bound of the tokens of a body. A form is a file, whose tokens are unknown."""
    return len(body) if isinstance(body, bytes) else 0
