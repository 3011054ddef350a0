"""POST /v1/chat/completions."""

import asyncio
import time
from collections.abc import Iterable
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
    PromptTokensDetails,
    ResponseMessage,
    Semantic,
    TokenLogprob,
    TopLogprob,
)
from gateway.api.semantic import Scope, describe_call, scope_of, slots_of, transform_of
from gateway.api.services import SERVICES
from gateway.errors import FailedCall, RequestError
from gateway.graph.call import Call, CallSpec, CallState, Objective, Sampling, Slot, Text, Usage
from gateway.graph.errors import Failure
from gateway.graph.variable import Piece
from gateway.http.bodies import json_response, read_json
from gateway.http.errors import as_request_error, error_body
from gateway.http.sse import EventStream
from gateway.models import ServedModel
from gateway.prompt import Prompt

routes = web.RouteTableDef()

_LONG_PROMPT = 4_000
"""Characters; longer prompts are tokenised off the event loop."""
_STATUS_SECONDS = 5.0
"""So long a stream waits before its status line, so that an early failure can have a status of its own."""


@routes.post("/v1/chat/completions")
async def create(request: web.Request) -> web.StreamResponse:
    """Answers with text, a stream, or at once with the reference to an answer still to be made."""
    services = request.app[SERVICES]
    body = await read_json(request, ChatCompletionRequest)
    model = await services.models.get(body.model)
    sampling = _sampling(body, model)
    scope = scope_of(request, body.semantic)
    services.scheduler.admit(continues=bool(scope.session.calls))
    semantic = body.semantic or Semantic()
    answer_slot = Slot(None, sampling, transform_of(semantic.transform))
    prompt = await _prompt(body, model, scope, answer_slot, slots_of(semantic, sampling))
    spec = CallSpec(
        model=model.id,
        segments=prompt.segments,
        parts=prompt.parts,
        inputs=scope.inputs,
        output=semantic.output,
        deferred=scope.deferred,
        objective=Objective(semantic.objective) if semantic.objective else None,
        share=semantic.share,
    )
    addition = scope.session.add_all([spec])
    call = addition.calls[0]
    if scope.deferred:
        await services.scheduler.start(scope.session, addition, promised=True)
        return await _answer_reference(request, body, _Answer(call, scope, model))
    services.scheduler.reader_came(call.output)
    try:
        await services.scheduler.start(scope.session, addition)
        answer = _Answer(call, scope, model)
        return await (_stream(request, body, answer) if body.stream else _answer(answer))
    finally:
        services.scheduler.reader_left(call.output)


async def _prompt(
    body: ChatCompletionRequest, model: ServedModel, scope: Scope, answer: Slot, slots: dict[str, Slot]
) -> Prompt:
    """The prompt. Raises RequestError if what is known of it is over the window already."""
    messages = []
    for message in body.messages:
        # templates know `system`; `developer` is OpenAI's newer name for it
        role = "system" if message.role == "developer" else message.role
        entry: dict[str, Any] = {"role": role, "content": message.texts}
        if message.name is not None:
            entry["name"] = message.name
        messages.append(entry)
    if sum(len(text) for message in body.messages for text in message.texts) < _LONG_PROMPT:
        prompt = model.prompts.chat(messages, answer, references=scope.named, slots=slots)
    else:
        prompt = await asyncio.to_thread(model.prompts.chat, messages, answer, references=scope.named, slots=slots)
    known = sum(len(segment.tokens) for segment in prompt.segments if isinstance(segment, Text))
    if known >= model.window:
        raise RequestError(
            400,
            f"this model's window is {model.window} tokens, and the messages have {known}; shorten them",
            code="context_length_exceeded",
            param="messages",
        )
    return prompt


def _sampling(body: ChatCompletionRequest, model: ServedModel) -> Sampling:
    """The request's parameters in the domain's terms; what is left out gets OpenAI's default."""
    bias = {int(token): value for token, value in (body.logit_bias or {}).items()}
    for param, tokens in (("logit_bias", bias), ("stop_token_ids", body.stop_token_ids or [])):
        bad = next((token for token in tokens if token >= model.vocabulary), None)
        if bad is not None:
            raise RequestError(
                400,
                f"token {bad} is outside the vocabulary of {model.vocabulary}",
                code="invalid_value",
                param=param,
            )

    def given(value: Any, default: Any) -> Any:
        return default if value is None else value

    return Sampling(
        max_tokens=given(body.max_completion_tokens, body.max_tokens),
        temperature=given(body.temperature, 1.0),
        top_p=given(body.top_p, 1.0),
        top_k=max(0, given(body.top_k, 0)),
        min_p=given(body.min_p, 0.0),
        seed=body.seed,
        repetition_penalty=given(body.repetition_penalty, 1.0),
        presence_penalty=given(body.presence_penalty, 0.0),
        frequency_penalty=given(body.frequency_penalty, 0.0),
        logit_bias=bias,
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        min_tokens=given(body.min_tokens, 0),
        ignore_eos=given(body.ignore_eos, False),
        skip_special_tokens=given(body.skip_special_tokens, True),
        logprobs=given(body.logprobs, False),
        top_logprobs=given(body.top_logprobs, 0),
    )


class _Answer:
    """How a call is told to its client."""

    def __init__(self, call: Call, scope: Scope, model: ServedModel) -> None:
        self.call = call
        self._scope = scope
        self._model = model
        self._id = f"chatcmpl-{call.id.removeprefix('call_')}"
        self._created = int(time.time())

    @property
    def _semantic(self) -> dict[str, Any] | msgspec.UnsetType:
        return describe_call(self._scope.session, self.call) if self._scope.named else msgspec.UNSET

    def usage(self) -> CompletionUsage:
        """Tokens so far; none for an answer that is only the reference."""
        usage = Usage() if self.call.spec.deferred else self.call.usage
        return CompletionUsage(
            prompt_tokens=usage.prompt,
            completion_tokens=usage.completion,
            total_tokens=usage.prompt + usage.completion,
            prompt_tokens_details=PromptTokensDetails(usage.cached),
        )

    def whole(self, content: str, finish_reason: str, logprobs: ChoiceLogprobs | None = None) -> ChatCompletion:
        """The answer in one piece."""
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._model.id,
            choices=[Choice(0, ResponseMessage(content), finish_reason, logprobs)],
            usage=self.usage(),
            semantic=self._semantic,
        )

    def chunk(
        self,
        delta: ChoiceDelta | None,
        *,
        finish_reason: str | None = None,
        logprobs: ChoiceLogprobs | None = None,
        usage: CompletionUsage | None | msgspec.UnsetType = msgspec.UNSET,
    ) -> ChatCompletionChunk:
        """A part of the answer; without `delta`, the one that tells the usage."""
        return ChatCompletionChunk(
            id=self._id,
            created=self._created,
            model=self._model.id,
            choices=[] if delta is None else [ChunkChoice(0, delta, finish_reason, logprobs)],
            usage=usage,
            # the first and the last chunk say where the call stands; each token's need not
            semantic=self._semantic if delta is None or delta.role or finish_reason else msgspec.UNSET,
        )

    def logprobs(self, pieces: Iterable[Piece]) -> ChoiceLogprobs | None:
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

    def check(self) -> None:
        """Raises FailedCall unless the call is done."""
        if self.call.state is not CallState.DONE:
            raise FailedCall(self.call.failure or Failure("internal_error", f"the call is {self.call.state}"))


async def _answer(answer: _Answer) -> web.Response:
    output = answer.call.output
    await output.final()
    answer.check()
    finish = answer.call.finish_reason or "stop"
    return json_response(answer.whole(output.value or "", finish, answer.logprobs(output.pieces)))


async def _answer_reference(request: web.Request, body: ChatCompletionRequest, answer: _Answer) -> web.StreamResponse:
    """A complete ordinary answer whose content is the reference to the one still to be made."""
    reference = f"<<{answer.call.output.name}>>"
    if not body.stream:
        return json_response(answer.whole(reference, "stop"))
    stream = EventStream(request)
    hidden, told = _usage_fields(body, answer)
    events = [
        answer.chunk(ChoiceDelta(role="assistant", content=""), usage=hidden),
        answer.chunk(ChoiceDelta(content=reference), usage=hidden),
        answer.chunk(ChoiceDelta(), finish_reason="stop", usage=hidden),
    ]
    await stream.data(*events, *told)
    return await stream.end()


def _usage_fields(
    body: ChatCompletionRequest, answer: _Answer
) -> tuple[None | msgspec.UnsetType, list[ChatCompletionChunk]]:
    """What chunks say of usage before the last, and the chunk that tells it, where it was asked for."""
    if body.stream_options is None or not body.stream_options.include_usage:
        return msgspec.UNSET, []
    return None, [answer.chunk(None, usage=answer.usage())]


async def _stream(request: web.Request, body: ChatCompletionRequest, answer: _Answer) -> web.StreamResponse:
    stream = EventStream(request)
    output = answer.call.output
    hidden, _ = _usage_fields(body, answer)
    opening = [answer.chunk(ChoiceDelta(role="assistant", content=""), usage=hidden)]
    try:
        with answer.call.session.read(output) as reader:
            while pieces := await stream.patiently(reader.more, _STATUS_SECONDS):
                text = "".join(piece.text for piece in pieces)
                logprobs = answer.logprobs(pieces)
                if text or logprobs:
                    chunk = answer.chunk(ChoiceDelta(content=text), logprobs=logprobs, usage=hidden)
                    await stream.data(*opening, chunk)
                    opening = []
        answer.check()
    except FailedCall as error:
        if not stream.begun:
            raise
        await stream.data(error_body(as_request_error(error)))
        return await stream.end()
    last = answer.chunk(ChoiceDelta(), finish_reason=answer.call.finish_reason or "stop", usage=hidden)
    _, told = _usage_fields(body, answer)
    await stream.data(*opening, last, *told)
    return await stream.end()
