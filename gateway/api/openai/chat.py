"""POST /v1/chat/completions."""

import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    FunctionCall,
    Message,
    NamedTool,
    ResponseMessage,
    ToolCallAnswer,
    ToolCallDelta,
)
from gateway.api.answers import Extra, respond
from gateway.api.calls import answer_slot, prepared, sampling_of, several, spec_of, with_fallbacks
from gateway.api.openai.logprobs import token_logprobs
from gateway.api.schema_checks import checks_of
from gateway.api.semantic.extension import SESSION_HEADERS, UNSAID, scope_of, slots_of
from gateway.api.serializers.choices import Choices, Told
from gateway.api.services import SERVICES
from gateway.errors import RequestError, at
from gateway.graph.call import Call, CallSpec, SamplingParams, Slot
from gateway.graph.ids import new_id
from gateway.graph.variable import Piece, reasoning_of
from gateway.http.json_body import read_json
from gateway.http.openapi import EVENTS, operation
from gateway.prompts.builder import Prompt
from gateway.prompts.served_models import ServedModel
from gateway.prompts.tool_calls import AnswerText, CallArguments, CallStart, Found, Reader, Tool, Tools, read_calls

routes = web.RouteTableDef()


@routes.post("/v1/chat/completions")
@operation(
    ChatCompletion,
    body=ChatCompletionRequest,
    others={EVENTS: None},
    headers=SESSION_HEADERS,
    errors=(404, 409, 410, 422, 424, 429, 503),
)
async def create(request: web.Request) -> web.StreamResponse:
    """Answers with text, a stream, or at once with the reference to an answer still to be made."""
    services = request.app[SERVICES]
    body = await read_json(request, ChatCompletionRequest)
    model = await services.models.get(body.model)
    scope = scope_of(request, body.semantic)
    services.scheduler.admit(scope.session.tenant, continues=bool(scope.session.calls))
    others = services.models.behind(model)
    make = partial(chat_spec, body, model, others, references=scope.named, deferred=scope.deferred)
    spec = await prepared(make, len(await request.read()), model, *others)
    specs, count = several(spec, body.choices), body.choices
    shape = _Shape(model, body)
    checks = checks_of(body, reader_of(body, model), services.form_checks, scope.session.tenant)
    tell = partial(Choices, body, scope, shape, each=count, keep=count, checks=checks)
    return await respond(request, scope, specs, tell, body.streamed)


def chat_spec(
    body: ChatCompletionRequest,
    model: ServedModel,
    others: Sequence[ServedModel] = (),
    *,
    references: bool,
    deferred: bool,
    where: str = "",
    field: str = "messages",
    places: Sequence[str] = (),
) -> CallSpec:
    """The call that a request asks for; `others` answer in the model's place. `where`, `field` and `places`: as in
    `PromptBuilder.chat`. Raises RequestError and GraphError; changes nothing."""
    make = partial(_spec, body, references=references, deferred=deferred, where=where, field=field, places=places)
    return with_fallbacks(make(model), others, make)


def _spec(
    body: ChatCompletionRequest,
    model: ServedModel,
    *,
    references: bool,
    deferred: bool,
    where: str,
    field: str,
    places: Sequence[str],
) -> CallSpec:
    semantic = body.semantic or UNSAID
    sampling = sampling_of(body, model, where)
    tools = tools_of(body)
    if tools is not None:
        if tools.choice == "forced" and semantic.slots:
            message = "a request with slots has no answer of its own that could be a call"
            raise RequestError(400, message, code="unsupported_with_semantic", param=at(where, "tool_choice"))
        sampling = _held_to(sampling, tools, model)
    prompt = chat_prompt(
        model,
        body.messages,
        answer_slot(semantic, sampling, where),
        references=references,
        slots=slots_of(semantic, sampling, where),
        tools=tools,
        opens=body.add_generation_prompt is not False,
        continues=bool(body.continue_final_message),
        options=body.chat_template_kwargs,
        passed_on=_passed_on(body, model),
        where=where,
        field=field,
        places=places,
    )
    return spec_of(model, prompt, body, deferred=deferred, where=where)


def tools_of(body: ChatCompletionRequest) -> Tools | None:
    """What the request says of tools, if it has any."""
    if not body.tools:
        return None
    forced = _is_forced(body)
    known = [
        Tool(
            tool.function.name,
            tool.function.description or "",
            tool.function.parameters or {"type": "object", "properties": {}},
            bool(tool.function.strict),
            tool.function.enforced if forced or tool.function.strict else {"type": "object"},
        )
        for tool in body.tools
    ]
    choice, parallel = body.tool_choice, body.parallel_tool_calls
    if isinstance(choice, NamedTool):
        named = [tool for tool in known if tool.name == choice.function.name]
        return Tools(known, "forced", named, parallel_told=parallel)
    if choice == "required":
        return Tools(known, "forced", known, bool(parallel), parallel)
    return Tools(known, "none" if choice == "none" else "auto", parallel_told=parallel)


def reader_of(body: ChatCompletionRequest, model: ServedModel) -> Callable[[], Reader] | None:
    """Makes what finds calls of tools in an answer, if there may be any."""
    # not by `tools_of`: it makes the schemas that are enforced, which may take long
    if not body.tools or body.tool_choice == "none":
        return None
    # a transform may replace the text of a call by any other text
    transformed = body.semantic is not None and body.semantic.transform is not None
    forced = _is_forced(body) and not model.prompts.is_passthrough and not transformed
    return partial(Reader, [tool.function.name for tool in body.tools], forced=forced)


def _is_forced(body: ChatCompletionRequest) -> bool:
    """Return whether the answer has to be a call."""
    return body.tool_choice == "required" or isinstance(body.tool_choice, NamedTool)


def _held_to(sampling: SamplingParams, tools: Tools, model: ServedModel) -> SamplingParams:
    """Return the sampling of an answer with tools. The schema of a forced call replaces any other form of the answer.

    Stop strings do not apply to a forced call: the client does not see the text in which they would be found.
    """
    if model.prompts.is_passthrough:  # its server sees to it
        return sampling
    style = model.prompts.style
    if tools.choice == "forced":
        schema = json.dumps(tools.call_schema(style))
        sampling = dataclasses.replace(sampling, stop=(), stop_token_ids=())
        return dataclasses.replace(sampling, regex=None, json_schema=schema, grammar=None)
    if sampling.regex is None and sampling.json_schema is None and sampling.grammar is None:
        return dataclasses.replace(sampling, grammar=tools.grammar(style, model.tokenizer.control))
    return sampling


def _passed_on(body: ChatCompletionRequest, model: ServedModel) -> dict[str, str]:
    """Return the fields that are passed on to another server. For models without one, hints are dropped."""
    if model.prompts.is_passthrough:
        return body.passed_on
    return {name: value for name, value in body.passed_on.items() if name not in _HINTS}


_HINTS = frozenset({"verbosity"})
"""Fields that a server may ignore."""


def chat_prompt(model: ServedModel, messages: Sequence[Message], answer: Slot, **how: Any) -> Prompt:
    """Return the prompt of a conversation. `how` and the errors are those of `PromptBuilder.chat`.

    Arguments of calls that are not JSON objects are text. If the template fails because it reads their keys, each such
    text is put into an object.
    """
    written = [_message(message) for message in messages]
    try:
        return model.prompts.chat(written, answer, **how)
    except (RequestError, TypeError):  # a template that reads the keys of a text raises either
        if not any(isinstance(called["arguments"], str) for called in _functions(written)):
            raise
    for called in _functions(written):
        if isinstance(called["arguments"], str):
            called["arguments"] = {"arguments": called["arguments"]}
    return model.prompts.chat(written, answer, **how)


def _functions(messages: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the functions that the messages call."""
    for message in messages:
        for call in message.get("tool_calls", ()):
            yield call["function"]


def _message(message: Message) -> dict[str, Any]:
    """A message as templates know it: `developer` is OpenAI's newer name for `system`."""
    role = "system" if message.role == "developer" else message.role
    told: dict[str, Any] = {"role": role, "content": message.parts}
    if message.name is not None:
        told["name"] = message.name
    if message.reasoned:
        told["reasoning_content"] = message.reasoned
    if message.tool_calls:
        told["tool_calls"] = message.called
    if message.tool_call_id is not None:
        told["tool_call_id"] = message.tool_call_id
    return told


class _Shape:
    """See `choices.Shape`."""

    def __init__(self, model: ServedModel, body: ChatCompletionRequest) -> None:
        self._model = model
        self.model = model.id
        self._id = f"chatcmpl-{new_id(24)}"
        self._created = int(time.time())
        self._logprobs_told = body.wants_logprobs
        self._reader = reader_of(body, model)
        """Makes what finds calls in an answer, if there may be any."""
        self._readers: dict[int, Reader] = {}
        """Of streamed answers, by index."""

    def choice(self, index: int, call: Call, text: str, finish: str, pieces: Sequence[Piece]) -> Choice:
        """See `choices.Shape`."""
        logprobs = self._logprobs(pieces)
        beside = _beside(pieces)
        if self._reader is None:
            return Choice(index, ResponseMessage(text, **beside), finish, logprobs)
        reader = self._reader()
        said, calls = read_calls(reader, text, cut=finish == "length")
        if not calls:
            return Choice(index, ResponseMessage(said, **beside), finish, logprobs)
        answers = [ToolCallAnswer(call_id(), FunctionCall(name, arguments)) for name, arguments in calls]
        message = ResponseMessage(said or None, tool_calls=answers, **beside)
        return Choice(index, message, _finish(finish, reader), logprobs)

    def whole(self, choices: Sequence[Choice], usage: CompletionUsage, extra: Extra) -> ChatCompletion:
        """See `choices.Shape`."""
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self.model,
            choices=list(choices),
            usage=usage,
            semantic=extra,
        )

    def opening(self, index: int) -> ChunkChoice:
        """See `choices.Shape`."""
        return ChunkChoice(index, ChoiceDelta(role="assistant", content=""))

    def piece(self, index: int, call: Call, text: str, pieces: Sequence[Piece]) -> list[ChunkChoice]:
        """See `choices.Shape`."""
        logprobs = self._logprobs(pieces)
        if self._reader is None:
            deltas = [ChoiceDelta(content=text)] if text else []
        else:
            deltas = _deltas(self._readers.setdefault(index, self._reader()).push(text))
        beside = _beside(pieces)
        if beside:
            first, *others = deltas or [ChoiceDelta()]
            deltas = [msgspec.structs.replace(first, **beside), *others]
        if logprobs and not deltas:
            deltas = [ChoiceDelta()]
        if logprobs is None or not deltas:
            return [ChunkChoice(index, delta) for delta in deltas]
        first, *others = deltas
        return [ChunkChoice(index, first, None, logprobs), *(ChunkChoice(index, delta) for delta in others)]

    def closing(self, index: int, finish: str) -> list[ChunkChoice]:
        """See `choices.Shape`."""
        reader = self._readers.get(index)
        if reader is None:
            return [ChunkChoice(index, ChoiceDelta(), finish)]
        deltas = _deltas(reader.finish(cut=finish == "length"))
        last = ChunkChoice(index, ChoiceDelta(), _finish(finish, reader))
        return [*(ChunkChoice(index, delta) for delta in deltas), last]

    def chunk(self, choices: Sequence[ChunkChoice], usage: Told, extra: Extra = msgspec.UNSET) -> ChatCompletionChunk:
        """See `choices.Shape`."""
        return ChatCompletionChunk(
            id=self._id, created=self._created, model=self.model, choices=list(choices), usage=usage, semantic=extra
        )

    def _logprobs(self, pieces: Iterable[Piece]) -> ChoiceLogprobs | None:
        """Log probabilities of the pieces' tokens, if they were asked for."""
        return ChoiceLogprobs(token_logprobs(self._model, pieces)) if self._logprobs_told else None


def _beside(pieces: Iterable[Piece]) -> dict[str, Any]:
    """What the model told beside its answer, by both of its names."""
    reasoning = reasoning_of(pieces)
    return {"reasoning_content": reasoning, "reasoning": reasoning} if reasoning else {}


def _deltas(found: Iterable[Found]) -> list[ChoiceDelta]:
    """Return what was found in a piece of text as deltas, each with at most one entry of `tool_calls`.

    Some clients read only `tool_calls[0]` (llama-index). Others lose arguments when two entries have the same index
    (the openai package before 3.57).
    """
    deltas: list[ChoiceDelta] = []
    before: Found | None = None
    for one in found:
        match before, one:
            case AnswerText(text), AnswerText(more):
                deltas[-1] = ChoiceDelta(content=text + more)
                one = AnswerText(text + more)
            case _, AnswerText(text):
                deltas.append(ChoiceDelta(content=text))
            case _, CallStart(index, name):
                deltas.append(_entry(ToolCallDelta(index, FunctionCall(name, ""), call_id(), "function")))
            case CallArguments(index, text), CallArguments(
                _, more
            ):  # both of the same call: each call begins with a name
                deltas[-1] = _entry(ToolCallDelta(index, FunctionCall(arguments=text + more)))
                one = CallArguments(index, text + more)
            case _, CallArguments(index, text):
                deltas.append(_entry(ToolCallDelta(index, FunctionCall(arguments=text))))
        before = one
    return deltas


def _entry(call: ToolCallDelta) -> ChoiceDelta:
    return ChoiceDelta(tool_calls=[call])


def call_id() -> str:
    """Of a tool, for what it answers to name."""
    return f"call_{new_id(24)}"


def _finish(finish: str, reader: Reader) -> str:
    """Return the finish reason of an answer. It is `tool_calls` only if the last call is complete."""
    return "tool_calls" if finish == "stop" and reader.calls and reader.whole else finish
