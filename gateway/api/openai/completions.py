"""POST /v1/completions: text goes on as the model would have it, without a chat template."""

import codecs
import dataclasses
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec
from aiohttp import web

from compat.openai import (
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
    CompletionUsage,
    Semantic,
    TextCompletion,
)
from gateway.api.answers import Extra, respond
from gateway.api.calls import answer_slot, check_tokens, prepared, sampling_of, several, spec_of, with_fallbacks
from gateway.api.openai.logprobs import finite
from gateway.api.schema_checks import checks_of
from gateway.api.semantic.extension import SESSION_HEADERS, UNSAID, scope_of
from gateway.api.serializers.choices import Choices, Told
from gateway.api.services import SERVICES
from gateway.errors import RequestError
from gateway.graph.call import Call, CallSpec, Input
from gateway.graph.ids import new_id
from gateway.graph.variable import Piece
from gateway.http.json_body import read_json
from gateway.http.openapi import EVENTS, operation
from gateway.prompts.served_models import ServedModel

routes = web.RouteTableDef()


@routes.post("/v1/completions")
@operation(
    TextCompletion,
    body=CompletionRequest,
    others={EVENTS: None},
    headers=SESSION_HEADERS,
    errors=(404, 409, 410, 422, 424, 429, 503),
)
async def create(request: web.Request) -> web.StreamResponse:
    """Answers with text, a stream, or at once with the reference to an answer still to be made."""
    services = request.app[SERVICES]
    body = await read_json(request, CompletionRequest)
    model = await services.models.get(body.model)
    scope = scope_of(request, body.semantic)
    services.scheduler.admit(scope.session.tenant, continues=bool(scope.session.calls))
    others = services.models.behind(model)
    make = partial(_specs, body, model, others, references=scope.named, deferred=scope.deferred)
    specs = await prepared(make, sum(map(len, body.prompts)), model, *others)
    checks = checks_of(body, None, services.form_checks, scope.session.tenant)
    tell = partial(Choices, body, scope, _Shape(model, body), each=body.candidates, keep=body.choices, checks=checks)
    return await respond(request, scope, specs, tell, body.streamed)


def _specs(
    body: CompletionRequest, model: ServedModel, others: Sequence[ServedModel], *, references: bool, deferred: bool
) -> list[CallSpec]:
    """The calls that a request asks for. Raises RequestError and GraphError; changes nothing."""
    semantic = body.semantic or UNSAID
    if semantic.slots:
        raise RequestError(
            400,
            "slots stand in assistant messages; a completion has none",
            code="unsupported_with_semantic",
            param="semantic.slots",
        )
    specs: list[CallSpec] = []
    for number, prompt in enumerate(body.prompts):
        where = f"prompt.{number}" if len(body.prompts) > 1 else "prompt"
        make = partial(_spec, body, prompt, where, semantic, references=references, deferred=deferred)
        spec = with_fallbacks(make(model), others if isinstance(prompt, str) else (), make)
        if specs:  # names are taken once
            spec = dataclasses.replace(spec, output=None, inputs={})
        specs += several(spec, body.candidates)
    return specs


def _spec(
    body: CompletionRequest,
    prompt: str | list[int],
    where: str,
    semantic: Semantic,
    model: ServedModel,
    *,
    references: bool,
    deferred: bool,
) -> CallSpec:
    answer = answer_slot(semantic, sampling_of(body, model))
    if isinstance(prompt, str):
        built = model.prompts.completion(prompt, answer, references=references, where=where)
    elif model.tokenizer.is_passthrough:
        message = f"{model.id} runs on an engine elsewhere that is given text; its tokens are not known here"
        raise RequestError(400, message, code="unsupported_by_engine", param=where)
    else:
        built = model.prompts.tokens(prompt, answer, where=where)
        check_tokens(model, prompt, where)
    if body.echo and any(isinstance(segment, Input) for segment in built.segments):
        raise RequestError(
            400, "echo is not for prompts with references", code="unsupported_with_semantic", param="echo"
        )
    return spec_of(model, built, body, deferred=deferred)


class _Shape:
    """See `choices.Shape`. Whole answers and chunks look the same."""

    def __init__(self, model: ServedModel, body: CompletionRequest) -> None:
        self._model = model
        self.model = model.id
        self._id = f"cmpl-{new_id(24)}"
        self._created = int(time.time())
        self._logprobs_told = body.logprobs is not None
        self._offsets: dict[int, TextOffsets] = {}
        """Text offsets of each answer, by index."""
        self._skips_special = body.skip_special_tokens is not False
        self._echoed: list[str] = []
        """What comes before the answers to each prompt."""
        self._each = body.choices
        if body.echo:
            self._echoed = [
                prompt if isinstance(prompt, str) else model.tokenizer.decode(prompt) for prompt in body.prompts
            ]

    def choice(self, index: int, call: Call, text: str, finish: str, pieces: Sequence[Piece]) -> CompletionChoice:
        """See `choices.Shape`."""
        return CompletionChoice(self._before(index) + text, finish, index, self._logprobs(index, pieces))

    def whole(self, choices: Sequence[CompletionChoice], usage: CompletionUsage, extra: Extra) -> TextCompletion:
        """See `choices.Shape`."""
        return self.chunk(choices, usage, extra)

    def opening(self, index: int) -> CompletionChoice | None:
        """See `choices.Shape`."""
        before = self._before(index)
        return CompletionChoice(before, None, index) if before else None

    def piece(self, index: int, call: Call, text: str, pieces: Sequence[Piece]) -> list[CompletionChoice]:
        """See `choices.Shape`."""
        logprobs = self._logprobs(index, pieces)
        return [CompletionChoice(text, None, index, logprobs)] if text or logprobs else []

    def closing(self, index: int, finish: str) -> list[CompletionChoice]:
        """See `choices.Shape`."""
        return [CompletionChoice("", finish, index)]

    def chunk(self, choices: Sequence[CompletionChoice], usage: Told, extra: Extra = msgspec.UNSET) -> TextCompletion:
        """See `choices.Shape`."""
        return TextCompletion(
            id=self._id, created=self._created, model=self.model, choices=list(choices), usage=usage, semantic=extra
        )

    def _before(self, index: int) -> str:
        return self._echoed[index // self._each] if self._echoed else ""

    def _logprobs(self, index: int, pieces: Sequence[Piece]) -> CompletionLogprobs | None:
        """Log probabilities of the pieces' tokens, if they were asked for."""
        if not self._logprobs_told:
            return None
        entries: list[Any] = [entry for piece in pieces for entry in piece.logprobs]
        offsets = self._offsets.setdefault(index, TextOffsets(len(self._before(index))))
        return CompletionLogprobs(
            [self._text(entry.token) for entry in entries],
            [finite(entry.logprob) for entry in entries],
            [{self._text(token): finite(logprob) for token, logprob in entry.top} for entry in entries],
            [offsets.push(self._bytes(entry.token)) for entry in entries],
        )

    def _bytes(self, token: int | bytes) -> bytes:
        """Return the bytes that a token adds to the text."""
        if self._skips_special and isinstance(token, int) and not self._model.tokenizer.decode([token]):
            return b""
        return self._model.token_bytes(token)

    def _text(self, token: int | bytes) -> str:
        return self._model.token_bytes(token).decode(errors="replace")


class TextOffsets:
    """Counter of the positions of tokens in a text, in characters. Parts of one character have its position."""

    def __init__(self, before: int) -> None:
        """`before`: number of characters before the first token."""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._length = before
        """Number of complete characters so far."""

    def push(self, token: bytes) -> int:
        """Add the next token and return its position."""
        begins = self._length
        self._length += len(self._decoder.decode(token))
        return begins
