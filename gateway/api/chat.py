"""POST /v1/chat/completions."""

import asyncio
import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import msgspec
from aiohttp import web

from compat.openai import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    Choice,
    ChoiceDelta,
    ChoiceLogprobs,
    ChunkChoice,
    CompletionUsage,
    ResponseMessage,
    Semantic,
    TokenLogprob,
    TopLogprob,
)
from gateway.api.answers import Extra, Told, respond
from gateway.api.calls import LONG_PROMPT, answer_slot, sampling_of, spec_of
from gateway.api.semantic import scope_of, slots_of
from gateway.api.services import SERVICES
from gateway.graph.call import Call, CallSpec
from gateway.graph.variable import Piece
from gateway.http.bodies import read_json
from gateway.models import ServedModel

routes = web.RouteTableDef()


@routes.post("/v1/chat/completions")
async def create(request: web.Request) -> web.StreamResponse:
    """Answers with text, a stream, or at once with the reference to an answer still to be made."""
    services = request.app[SERVICES]
    body = await read_json(request, ChatCompletionRequest)
    model = await services.models.get(body.model)
    scope = scope_of(request, body.semantic)
    services.scheduler.admit(continues=bool(scope.session.calls))
    if sum(len(text) for message in body.messages for text in message.texts) < LONG_PROMPT:
        spec = chat_spec(body, model, references=scope.named, deferred=scope.deferred)
    else:
        spec = await asyncio.to_thread(chat_spec, body, model, references=scope.named, deferred=scope.deferred)
    return await respond(request, body, scope, spec, partial(_Shape, model))


def chat_spec(
    body: ChatCompletionRequest, model: ServedModel, *, references: bool, deferred: bool, where: str = ""
) -> CallSpec:
    """The call that a request asks for. Raises RequestError and GraphError; changes nothing."""
    semantic = body.semantic or Semantic()
    sampling = sampling_of(body, model, where)
    prompt = model.prompts.chat(
        [_message(message.role, message.texts, message.name) for message in body.messages],
        answer_slot(semantic, sampling, where),
        references=references,
        slots=slots_of(semantic, sampling, where),
        where=where,
    )
    return spec_of(model, prompt, semantic, deferred=deferred, where=where)


def _message(role: str, content: str | Sequence[str], name: str | None) -> dict[str, Any]:
    """A message as templates know it: `developer` is OpenAI's newer name for `system`."""
    message: dict[str, Any] = {"role": "system" if role == "developer" else role, "content": content}
    return message if name is None else {**message, "name": name}


class _Shape:
    """See `answers.Shape`."""

    def __init__(self, model: ServedModel, call: Call) -> None:
        self.call = call
        self._model = model
        self._id = f"chatcmpl-{call.id.removeprefix('call_')}"
        self._created = int(time.time())

    def whole(
        self, text: str, finish: str, pieces: Sequence[Piece], usage: CompletionUsage, extra: Extra
    ) -> ChatCompletion:
        """See `answers.Shape`."""
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._model.id,
            choices=[Choice(0, ResponseMessage(text), finish, self._logprobs(pieces))],
            usage=usage,
            semantic=extra,
        )

    def opening(self, usage: Told, extra: Extra) -> list[ChatCompletionChunk]:
        """See `answers.Shape`."""
        return [self._chunk([ChunkChoice(0, ChoiceDelta(role="assistant", content=""))], usage, extra)]

    def piece(self, text: str, pieces: Sequence[Piece], usage: Told) -> ChatCompletionChunk | None:
        """See `answers.Shape`."""
        logprobs = self._logprobs(pieces)
        if not text and not logprobs:
            return None
        return self._chunk([ChunkChoice(0, ChoiceDelta(content=text), None, logprobs)], usage)

    def closing(self, finish: str, usage: Told, extra: Extra) -> ChatCompletionChunk:
        """See `answers.Shape`."""
        return self._chunk([ChunkChoice(0, ChoiceDelta(), finish)], usage, extra)

    def usage(self, usage: CompletionUsage, extra: Extra) -> ChatCompletionChunk:
        """See `answers.Shape`."""
        return self._chunk([], usage, extra)

    def _chunk(self, choices: list[ChunkChoice], usage: Told, extra: Extra = msgspec.UNSET) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=self._id, created=self._created, model=self._model.id, choices=choices, usage=usage, semantic=extra
        )

    def _logprobs(self, pieces: Iterable[Piece]) -> ChoiceLogprobs | None:
        """Log probabilities of the pieces' tokens, if they were asked for."""
        if not any(slot.sampling.logprobs for slot in self.call.spec.slots):
            return None
        return ChoiceLogprobs([self._logprob(entry) for piece in pieces for entry in piece.logprobs])

    def _logprob(self, entry: Any) -> TokenLogprob:
        top = [TopLogprob(self._text(token), logprob, self._bytes(token)) for token, logprob in entry.top]
        return TokenLogprob(self._text(entry.token), entry.logprob, self._bytes(entry.token), top)

    def _text(self, token: int) -> str:
        return self._model.tokenizer.token_bytes(token).decode(errors="replace")

    def _bytes(self, token: int) -> list[int]:
        return list(self._model.tokenizer.token_bytes(token))
