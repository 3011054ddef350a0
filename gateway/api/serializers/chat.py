"""Serialize calls as chat completions."""

from collections.abc import Collection, Container, Iterable, Iterator, Sequence
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
    CustomCall,
    CustomToolCallAnswer,
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
from gateway.prompts.tool_calls.input_decoder import InputDecoder
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
        self._custom_tools = body.custom_tool_names
        self._streams: dict[int, _AnswerStream] = {}
        """Streamed answers, by index."""

    def _choice(self, index: int, text: str, finish: str, pieces: Sequence[Piece]) -> Choice:
        logprobs = self._logprobs(pieces)
        reasoning = _reasoning_fields(pieces)
        if self._parser_factory is None:
            return Choice(index, ResponseMessage(text, **reasoning), finish, logprobs)
        parser = self._parser_factory()
        content, found = parse_answer(parser, text, cut=finish == "length")
        if not found:
            return Choice(index, ResponseMessage(content, **reasoning), finish, logprobs)
        tool_calls = [self._tool_call(name, arguments) for name, arguments in found]
        message = ResponseMessage(content or None, tool_calls=tool_calls, **reasoning)
        return Choice(index, message, _finish_reason(finish, parser), logprobs)

    def _tool_call(self, name: str, arguments: str) -> ToolCallAnswer | CustomToolCallAnswer:
        if name not in self._custom_tools:
            return ToolCallAnswer(new_tool_call_id(), FunctionCall(name, arguments))
        decoder = InputDecoder()
        return CustomToolCallAnswer(new_tool_call_id(), CustomCall(name, decoder.push(arguments) + decoder.finish()))

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
            if index not in self._streams:
                self._streams[index] = _AnswerStream(self._parser_factory(), self._custom_tools)
            deltas = self._streams[index].push(text)
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
        stream = self._streams.get(index)
        if stream is None:
            return [ChunkChoice(index, ChoiceDelta(), finish)]
        deltas = stream.finish(cut=finish == "length")
        last = ChunkChoice(index, ChoiceDelta(), _finish_reason(finish, stream.parser))
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


class _AnswerStream:
    """One streamed answer, as deltas. `custom_tools`: names of the tools whose calls have an input, not arguments."""

    def __init__(self, parser: ToolCallParser, custom_tools: Collection[str]) -> None:
        self.parser = parser
        self._custom_tools = custom_tools
        self._custom_calls: set[int] = set()
        """Positions of the calls of custom tools."""
        self._input: tuple[int, InputDecoder] | None = None
        """Position of the last call, and the decoder of its input, if it calls a custom tool."""

    def push(self, text: str) -> list[ChoiceDelta]:
        """Add text of the model. Return its deltas."""
        return _deltas(self._decode_inputs(self.parser.push(text)), self._custom_calls)

    def finish(self, *, cut: bool) -> list[ChoiceDelta]:
        """Return the last deltas. `cut`: whether a token limit ended the answer."""
        found = [*self._decode_inputs(self.parser.finish(cut=cut)), *self._end_input()]
        return _deltas(found, self._custom_calls)

    def _decode_inputs(self, found: Iterable[ToolCallEvent]) -> Iterable[ToolCallEvent]:
        """Return the events with inputs of custom tools in place of their arguments."""
        return self._decoded(found) if self._custom_tools else found

    def _decoded(self, found: Iterable[ToolCallEvent]) -> Iterator[ToolCallEvent]:
        for event in found:
            match event:
                case ToolCallStart(index, name):
                    yield from self._end_input()
                    if name in self._custom_tools:
                        self._custom_calls.add(index)
                        self._input = index, InputDecoder()
                    yield event
                case ToolCallArguments(index, text) if self._input is not None:
                    if decoded := self._input[1].push(text):
                        yield ToolCallArguments(index, decoded)
                case _:
                    yield event

    def _end_input(self) -> Iterator[ToolCallEvent]:
        """Yield the rest of the last input, if it is not complete JSON."""
        if self._input is not None:
            (index, decoder), self._input = self._input, None
            if rest := decoder.finish():
                yield ToolCallArguments(index, rest)


def _deltas(found: Iterable[ToolCallEvent], custom_calls: Container[int]) -> list[ChoiceDelta]:
    """Return the text and tool calls found in a piece of text as deltas, each with at most one entry of `tool_calls`.

    Some clients read only `tool_calls[0]` (llama-index). Others lose arguments when two entries have the same index
    (the openai package before 3.57). `custom_calls`: positions of the calls of custom tools.
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
                deltas.append(_start_delta(index, name, is_custom=index in custom_calls))
            # of the same tool call: each starts with a name
            case ToolCallArguments(index, text), ToolCallArguments(_, more):
                joined = ToolCallArguments(index, text + more)
                deltas[-1] = _piece_delta(index, joined.text, is_custom=index in custom_calls)
            case _, ToolCallArguments(index, text):
                deltas.append(_piece_delta(index, text, is_custom=index in custom_calls))
        before = joined
    return deltas


def _start_delta(index: int, name: str, *, is_custom: bool) -> ChoiceDelta:
    """Return the beginning of a tool call."""
    id = new_tool_call_id()
    if is_custom:
        return ChoiceDelta(tool_calls=[ToolCallDelta(index, id=id, type="custom", custom=CustomCall(name, ""))])
    return ChoiceDelta(tool_calls=[ToolCallDelta(index, FunctionCall(name, ""), id, "function")])


def _piece_delta(index: int, text: str, *, is_custom: bool) -> ChoiceDelta:
    """Return a piece of a tool call's arguments, or of a custom tool's input."""
    if is_custom:
        return ChoiceDelta(tool_calls=[ToolCallDelta(index, custom=CustomCall(input=text))])
    return ChoiceDelta(tool_calls=[ToolCallDelta(index, FunctionCall(arguments=text))])


def new_tool_call_id() -> str:
    """Return an id for a tool call; the message with the tool's output names it."""
    return f"call_{new_id(24)}"


def _finish_reason(finish: str, parser: ToolCallParser) -> str:
    """Return the finish reason of an answer. It is `tool_calls` only if the last tool call is complete."""
    return "tool_calls" if finish == "stop" and parser.calls and parser.whole else finish
