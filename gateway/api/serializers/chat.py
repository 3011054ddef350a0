"""Serialize calls as chat completions."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

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
    ResponseMessage,
    ToolCallAnswer,
    ToolCallDelta,
)
from gateway.api.openai.logprobs import token_logprobs
from gateway.api.openai.tools import ToolCallParserFactory
from gateway.api.schema_checks import AnswerChecker
from gateway.api.semantic.extension import Scope
from gateway.api.serializers.base import SemanticField
from gateway.api.serializers.choices import ChoicesSerializer, UsageField
from gateway.graph.ids import new_id
from gateway.graph.variable import Piece, reasoning_of
from gateway.prompts.served_models import ServedModel
from gateway.prompts.tool_calls.parser import (
    AnswerText,
    ToolCallArguments,
    ToolCallEvent,
    ToolCallParser,
    ToolCallStart,
    parse_answer,
)


class ChatSerializer(ChoicesSerializer):
    """Serializer of calls as one chat completion. Tool calls are found in their texts."""

    def __init__(
        self,
        body: ChatCompletionRequest,
        model: ServedModel,
        scope: Scope,
        parser_factory: ToolCallParserFactory | None,
        checker: AnswerChecker | None,
    ) -> None:
        """`parser_factory`: creates parsers of tool calls, if the answers may contain any."""
        count = body.choice_count
        id = f"chatcmpl-{new_id(24)}"
        super().__init__(body, scope, model.id, id, per_prompt=count, returned=count, checker=checker)
        self._model = model
        self._includes_logprobs = body.includes_logprobs
        self._names_tier = body.service_tier is not None
        self._parser_factory = parser_factory
        self._stream_parsers: dict[int, ToolCallParser] = {}
        """Readers of streamed answers, by index."""

    def _choice(self, index: int, text: str, finish: str, pieces: Sequence[Piece]) -> Choice:
        logprobs = self._logprobs(pieces)
        reasoning = _reasoning_fields(pieces)
        if self._parser_factory is None:
            return Choice(index, ResponseMessage(text, **reasoning), finish, logprobs)
        parser = self._parser_factory()
        content, found = parse_answer(parser, text, cut=finish == "length")
        if not found:
            return Choice(index, ResponseMessage(content, **reasoning), finish, logprobs)
        tool_calls = [ToolCallAnswer(new_tool_call_id(), FunctionCall(name, arguments)) for name, arguments in found]
        message = ResponseMessage(content or None, tool_calls=tool_calls, **reasoning)
        return Choice(index, message, _finish_reason(finish, parser), logprobs)

    def _body(self, choices: Sequence[Choice], usage: CompletionUsage, semantic: SemanticField) -> ChatCompletion:
        completion = self._build(ChatCompletion, choices, usage, semantic)
        return msgspec.structs.replace(completion, service_tier="default") if self._names_tier else completion

    def _opening(self, index: int) -> ChunkChoice:
        return ChunkChoice(index, ChoiceDelta(role="assistant", content=""))

    def _parts(self, index: int, text: str, pieces: Sequence[Piece]) -> list[ChunkChoice]:
        logprobs = self._logprobs(pieces)
        if self._parser_factory is None:
            deltas = [ChoiceDelta(content=text)] if text else []
        else:
            deltas = _deltas(self._stream_parsers.setdefault(index, self._parser_factory()).push(text))
        reasoning = _reasoning_fields(pieces)
        if reasoning:
            first, *others = deltas or [ChoiceDelta()]
            deltas = [msgspec.structs.replace(first, **reasoning), *others]
        if logprobs and not deltas:
            deltas = [ChoiceDelta()]
        if logprobs is None or not deltas:
            return [ChunkChoice(index, delta) for delta in deltas]
        first, *others = deltas
        return [ChunkChoice(index, first, None, logprobs), *(ChunkChoice(index, delta) for delta in others)]

    def _closing(self, index: int, finish: str) -> list[ChunkChoice]:
        parser = self._stream_parsers.get(index)
        if parser is None:
            return [ChunkChoice(index, ChoiceDelta(), finish)]
        deltas = _deltas(parser.finish(cut=finish == "length"))
        last = ChunkChoice(index, ChoiceDelta(), _finish_reason(finish, parser))
        return [*(ChunkChoice(index, delta) for delta in deltas), last]

    def _chunk(
        self, choices: Sequence[ChunkChoice], usage: UsageField, semantic: SemanticField = msgspec.UNSET
    ) -> ChatCompletionChunk:
        return self._build(ChatCompletionChunk, choices, usage, semantic)

    def _logprobs(self, pieces: Iterable[Piece]) -> ChoiceLogprobs | None:
        """Return the log probabilities of the pieces' tokens, if the client wants them."""
        return ChoiceLogprobs(token_logprobs(self._model, pieces)) if self._includes_logprobs else None


def _reasoning_fields(pieces: Iterable[Piece]) -> dict[str, Any]:
    """Return the model's reasoning under both of its names: DeepSeek's and OpenRouter's."""
    reasoning = reasoning_of(pieces)
    return {"reasoning_content": reasoning, "reasoning": reasoning} if reasoning else {}


def _deltas(found: Iterable[ToolCallEvent]) -> list[ChoiceDelta]:
    """Return the text and tool calls found in a piece of text as deltas, each with at most one entry of `tool_calls`.

    Some clients read only `tool_calls[0]` (llama-index). Others lose arguments when two entries have the same index
    (the openai package before 3.57).
    """
    deltas: list[ChoiceDelta] = []
    before: ToolCallEvent | None = None
    for event in found:
        joined: ToolCallEvent = event
        match before, event:
            case AnswerText(text), AnswerText(more):
                joined = AnswerText(text + more)
                deltas[-1] = ChoiceDelta(content=joined.text)
            case _, AnswerText(text):
                deltas.append(ChoiceDelta(content=text))
            case _, ToolCallStart(index, name):
                tool_call = ToolCallDelta(index, FunctionCall(name, ""), new_tool_call_id(), "function")
                deltas.append(_tool_call_delta(tool_call))
            # of the same tool call: each starts with a name
            case ToolCallArguments(index, text), ToolCallArguments(_, more):
                joined = ToolCallArguments(index, text + more)
                deltas[-1] = _tool_call_delta(ToolCallDelta(index, FunctionCall(arguments=text + more)))
            case _, ToolCallArguments(index, text):
                deltas.append(_tool_call_delta(ToolCallDelta(index, FunctionCall(arguments=text))))
        before = joined
    return deltas


def _tool_call_delta(tool_call: ToolCallDelta) -> ChoiceDelta:
    return ChoiceDelta(tool_calls=[tool_call])


def new_tool_call_id() -> str:
    """Return an id for a tool call; the message with the tool's output names it."""
    return f"call_{new_id(24)}"


def _finish_reason(finish: str, parser: ToolCallParser) -> str:
    """Return the finish reason of an answer. It is `tool_calls` only if the last tool call is complete."""
    return "tool_calls" if finish == "stop" and parser.calls and parser.whole else finish
