"""POST /v1/completions: text goes on as the model would have it, without a chat template."""

import asyncio
import time
from collections.abc import Sequence
from functools import partial

import msgspec
from aiohttp import web

from compat.openai import CompletionChoice, CompletionRequest, CompletionUsage, Semantic, TextCompletion
from gateway.api.answers import Extra, Told, respond
from gateway.api.calls import LONG_PROMPT, answer_slot, sampling_of, spec_of
from gateway.api.semantic import scope_of
from gateway.api.services import SERVICES
from gateway.errors import RequestError
from gateway.graph.call import Call, CallSpec
from gateway.graph.variable import Piece
from gateway.http.bodies import read_json
from gateway.models import ServedModel

routes = web.RouteTableDef()


@routes.post("/v1/completions")
async def create(request: web.Request) -> web.StreamResponse:
    """Answers with text, a stream, or at once with the reference to an answer still to be made."""
    services = request.app[SERVICES]
    body = await read_json(request, CompletionRequest)
    model = await services.models.get(body.model)
    scope = scope_of(request, body.semantic)
    services.scheduler.admit(continues=bool(scope.session.calls))
    if len(body.prompt) < LONG_PROMPT:
        spec = _spec(body, model, references=scope.named, deferred=scope.deferred)
    else:
        spec = await asyncio.to_thread(_spec, body, model, references=scope.named, deferred=scope.deferred)
    return await respond(request, body, scope, spec, partial(_Shape, model))


def _spec(body: CompletionRequest, model: ServedModel, *, references: bool, deferred: bool) -> CallSpec:
    """The call that a request asks for. Raises RequestError and GraphError; changes nothing."""
    semantic = body.semantic or Semantic()
    if semantic.slots:
        raise RequestError(
            400,
            "slots stand in assistant messages; a completion has none",
            code="unsupported_with_semantic",
            param="semantic.slots",
        )
    answer = answer_slot(semantic, sampling_of(body, model))
    if isinstance(body.prompt, str):
        prompt = model.prompts.completion(body.prompt, answer, references=references)
    else:
        bad = next((token for token in body.prompt if token >= model.vocabulary), None)
        if bad is not None:
            message = f"token {bad} is outside the vocabulary of {model.vocabulary}"
            raise RequestError(400, message, code="invalid_value", param="prompt")
        prompt = model.prompts.tokens(body.prompt, answer)
    return spec_of(model, prompt, semantic, deferred=deferred)


class _Shape:
    """See `answers.Shape`. Whole answers and chunks look the same."""

    def __init__(self, model: ServedModel, call: Call) -> None:
        self.call = call
        self._model = model
        self._id = f"cmpl-{call.id.removeprefix('call_')}"
        self._created = int(time.time())

    def whole(
        self, text: str, finish: str, pieces: Sequence[Piece], usage: CompletionUsage, extra: Extra
    ) -> TextCompletion:
        """See `answers.Shape`."""
        return self._completion([CompletionChoice(text, finish)], usage, extra)

    def opening(self, usage: Told, extra: Extra) -> list[TextCompletion]:
        """See `answers.Shape`."""
        return []

    def piece(self, text: str, pieces: Sequence[Piece], usage: Told) -> TextCompletion | None:
        """See `answers.Shape`."""
        return self._completion([CompletionChoice(text, None)], usage) if text else None

    def closing(self, finish: str, usage: Told, extra: Extra) -> TextCompletion:
        """See `answers.Shape`."""
        return self._completion([CompletionChoice("", finish)], usage, extra)

    def usage(self, usage: CompletionUsage, extra: Extra) -> TextCompletion:
        """See `answers.Shape`."""
        return self._completion([], usage, extra)

    def _completion(self, choices: list[CompletionChoice], usage: Told, extra: Extra = msgspec.UNSET) -> TextCompletion:
        return TextCompletion(
            id=self._id, created=self._created, model=self._model.id, choices=choices, usage=usage, semantic=extra
        )
