"""Serialize a call as a message of Anthropic's API."""

from collections.abc import Awaitable, Sequence
from functools import cached_property
from typing import ClassVar

import msgspec

from compat.anthropic import (
    AnthropicMessage,
    MessageDelta,
    MessageEnd,
    MessageEvent,
    MessagesRequest,
    MessageStart,
    MessageStop,
    MessageUsage,
    Ping,
    StopReason,
    ThinkingTokens,
)
from gateway.api.anthropic.answer_blocks import AnswerBlocks, BlockOptions, ThinkingDisplay
from gateway.api.anthropic.signature import ThinkingSigner
from gateway.api.anthropic.token_estimate import estimate_tokens
from gateway.api.openai.tools import ToolCallParserFactory
from gateway.api.schema_checks import AnswerChecker
from gateway.api.semantic.extension import Scope
from gateway.api.serializers.base import Serializer, check_done, reference_to, semantic_field
from gateway.errors import FailedCall
from gateway.graph.call import Call
from gateway.graph.ids import new_id
from gateway.graph.variable import Piece, reasoning_of
from gateway.http.middleware.errors import anthropic_error, as_request_error
from gateway.http.sse import named_event
from gateway.prompts.served_models import ServedModel
from gateway.prompts.tool_calls.parser import AnswerText


class MessageSerializer(Serializer):
    """Serializer of one call as a message with content blocks."""

    ends_with_done: ClassVar[bool] = False
    opening_seconds: ClassVar[float] = 0.5

    def __init__(
        self,
        body: MessagesRequest,
        model: ServedModel,
        scope: Scope,
        parser_factory: ToolCallParserFactory | None,
        checker: AnswerChecker | None,
        request_id: str,
    ) -> None:
        """`parser_factory`: creates the parser of tool calls, if the answer may contain any. `checker`: checks the
        answer against the request's schema. `request_id`: id of the request, for errors in the stream."""
        self._body = body
        self._model = model
        self._scope = scope
        self._parser = None if parser_factory is None else parser_factory()
        self._checker = checker
        self._request_id = request_id
        self._id = f"msg_{new_id(24)}"
        self._blocks = AnswerBlocks(ThinkingSigner(scope.session.tenant), block_options(body))
        self._is_open = False

    @property
    def _call(self) -> Call:
        (call,) = self.calls
        return call

    # whole answers

    async def whole_response(self) -> AnthropicMessage:
        """Return the message with all of its blocks."""
        output = self._call.output
        self._grow(output.value or "", output.pieces)
        self._close()
        if (checking := self.prepare_end(0)) is not None:
            await checking
        end = self._end
        return self._message(end.stop_reason, end.stop_sequence, self._usage, end.schema_violation)

    def reference_response(self) -> AnthropicMessage:
        """Return the message of a deferred call: a reference to its output."""
        self._blocks.add([AnswerText(reference_to(self._call))])
        self._blocks.end()
        return self._message("end_turn", None, _usage(0, 0, 0, 0))

    def _message(
        self,
        stop_reason: StopReason | None,
        stop_sequence: str | None,
        usage: MessageUsage,
        violation: str | msgspec.UnsetType = msgspec.UNSET,
    ) -> AnthropicMessage:
        return AnthropicMessage(
            id=self._id,
            model=self._call.model or self._model.id,  # a fallback has its own name
            content=list(self._blocks.done),
            stop_reason=stop_reason,
            stop_sequence=stop_sequence,
            usage=usage,
            schema_violation=violation,
            semantic=semantic_field(self._scope, self.calls),
        )

    # streams

    def heartbeat(self) -> bytes:
        """Return the beginning of the message if it has not been sent, otherwise a ping: clients of Anthropic's API may
        not count comments as a sign of life."""
        return _encode(self._open() or [Ping()])

    def reference_events(self) -> bytes:
        """Return the whole stream of a deferred call."""
        events = [*self._open(), *self._blocks.add([AnswerText(reference_to(self._call))]), *self._blocks.end()]
        semantic = semantic_field(self._scope, self.calls)
        end = MessageDelta(MessageEnd(stop_reason="end_turn", semantic=semantic), _usage(0, 0, 0, 0))
        return _encode([*events, end, MessageStop()])

    def piece_events(self, index: int, pieces: Sequence[Piece]) -> bytes:
        """Return the events for new pieces of the answer."""
        return _encode([*self._open(), *self._grow("".join([piece.text for piece in pieces]), pieces)])

    def prepare_end(self, index: int) -> Awaitable[None] | None:
        """Begin the check of the answer against its schema."""
        return None if self._checker is None else self._checker.start(0, self._call)

    def end_events(self, index: int) -> bytes:
        """Return the end of the last block, the reason to stop, and the usage. Raises FailedCall unless the call is
        done."""
        check_done(self._call)
        return _encode([*self._open(), *self._close(), MessageDelta(self._end, self._usage), MessageStop()])

    def error_events(self, error: FailedCall) -> bytes:
        """Return the event of an error."""
        return named_event("error", anthropic_error(as_request_error(error), self._request_id))

    def _open(self) -> list[MessageEvent]:
        """Return the first events of the stream. Later calls return none."""
        if self._is_open:
            return []
        self._is_open = True
        usage = self._call.usage
        prompt = usage.prompt or self._estimated_prompt
        return [MessageStart(self._message(None, None, _usage(prompt, usage.cached, 0, 0))), Ping()]

    @property
    def _estimated_prompt(self) -> int:
        """Number of prompt tokens before the engine has reported it; zero for a deferred call."""
        return 0 if self._call.spec.deferred else estimate_tokens(self._call.spec.segments)

    # both

    def _grow(self, text: str, pieces: Sequence[Piece]) -> list[MessageEvent]:
        """Add text of the model. `pieces`: the pieces of this text, with reasoning."""
        reasoning = reasoning_of(pieces)
        events = self._blocks.add_reasoning(reasoning) if reasoning else []
        return [*events, *self._blocks.add([AnswerText(text)] if self._parser is None else self._parser.push(text))]

    def _close(self) -> list[MessageEvent]:
        """End the last block. An answer without text and tool calls has an empty text."""
        is_cut = self._call.finish_reason == "length"
        events = [] if self._parser is None else self._blocks.add(self._parser.finish(cut=is_cut))
        events += self._blocks.end(cut=is_cut or (self._parser is not None and not self._parser.whole))
        if self._blocks.is_unanswered:
            events += [*self._blocks.add_empty_text(), *self._blocks.end()]
        return events

    @cached_property
    def _end(self) -> MessageEnd:
        reason, call = self._stop_reason, self._call
        violation = None if self._checker is None else self._checker.violation(0)
        return MessageEnd(
            stop_reason=reason,
            stop_sequence=call.stop_string if reason == "stop_sequence" else None,
            schema_violation=msgspec.UNSET if violation is None else violation,
            semantic=semantic_field(self._scope, self.calls),
        )

    @property
    def _stop_reason(self) -> StopReason:
        call = self._call
        match call.finish_reason:
            case "length":
                return "model_context_window_exceeded" if self._fills_window else "max_tokens"
            case "content_filter":
                return "refusal"
        if self._parser is not None and self._parser.calls and self._parser.whole:
            return "tool_use"
        return "stop_sequence" if call.stop_string in (self._body.stop_sequences or ()) else "end_turn"

    @property
    def _fills_window(self) -> bool:
        """Whether the window ended the answer, before it had as many tokens as the client allows."""
        usage, allowed, window = self._call.usage, self._body.max_tokens, self._model.window
        if window is None or usage.completion >= allowed:
            return False
        is_clamped = any((slot.sampling.max_tokens or allowed) < allowed for slot in self._call.spec.slots)
        return is_clamped or usage.prompt + usage.completion >= window

    @property
    def _usage(self) -> MessageUsage:
        usage = self._call.usage
        answer = _usage(usage.prompt, usage.cached, usage.completion, usage.reasoning)
        return answer if self.cost_of is None else msgspec.structs.replace(answer, cost=self.cost)


def block_options(body: MessagesRequest) -> BlockOptions:
    """Return the options of an answer's blocks."""
    thinking: ThinkingDisplay = "full"
    if body.thinking is not None:
        thinking = "none" if not body.thinking.is_on else "omitted" if body.thinking.display == "omitted" else "full"
    eager = frozenset(tool.name for tool in body.client_tools if tool.eager_input_streaming)
    single = body.tool_choice is not None and bool(body.tool_choice.disable_parallel_tool_use)
    return BlockOptions(thinking, eager, 1 if single else None)


def _usage(prompt: int, cached: int, completion: int, reasoning: int) -> MessageUsage:
    return MessageUsage(
        input_tokens=max(0, prompt - cached),
        cache_read_input_tokens=cached,
        output_tokens=completion,
        output_tokens_details=ThinkingTokens(reasoning) if reasoning else msgspec.UNSET,
        service_tier="standard",
    )


def _encode(events: Sequence[MessageEvent]) -> bytes:
    """Serialize events as server-sent events. Their names are their types."""
    return b"".join([named_event(str(type(event).__struct_config__.tag), event) for event in events])
