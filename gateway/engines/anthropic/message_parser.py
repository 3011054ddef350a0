"""Parse the answers of upstream servers with Anthropic's API, streamed or whole.

Each event becomes the chunk of a chat completion with the same content, which the parser of these reads. So tool calls,
limits and faults have one implementation.
"""

from typing import Any

import msgspec

from gateway.engines.openai.stream_parser import AnswerParser, ParsedPiece
from gateway.runtime.json_codec import encode_json


class _Usage(msgspec.Struct):
    input_tokens: Any = None
    cache_read_input_tokens: Any = None
    cache_creation_input_tokens: Any = None
    output_tokens: Any = None
    output_tokens_details: Any = None


class _Block(msgspec.Struct):
    type: str
    text: str = ""
    thinking: str = ""
    name: str = ""
    input: Any = None


class _Delta(msgspec.Struct):
    type: str = ""
    text: str = ""
    thinking: str = ""
    partial_json: str = ""
    stop_reason: str | None = None
    stop_sequence: str | None = None


class _Message(msgspec.Struct):
    content: list[_Block] = []
    stop_reason: str | None = None
    stop_sequence: str | None = None
    usage: _Usage | None = None


class _Event(_Message):
    type: str = ""
    message: _Message | None = None
    content_block: _Block | None = None
    delta: _Delta | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Event)
_FINISHES = {"max_tokens": "length", "model_context_window_exceeded": "length", "refusal": "content_filter"}
"""Finish reasons of chat completions by the reasons to stop; `stop` for all others."""
_STATUSES = {"invalid_request_error": 400, "request_too_large": 413, "not_found_error": 404, "permission_error": 403}
"""Statuses of errors in a stream that another attempt would not mend, by their types."""


class MessageParser(AnswerParser):
    """Incremental parser of one message."""

    def __init__(self, **options: Any) -> None:
        """`options`: those of `AnswerParser`."""
        super().__init__(**options)
        self._calls = 0
        """Number of tool calls whose blocks have started."""
        self._has_arguments = True
        """Whether the tool call that grows has arguments."""
        self._counts = _Usage()

    def _push(self, event: bytes) -> ParsedPiece | None:
        chunk = self._to_chunk(_decoder.decode(event))
        return None if chunk is None else super()._push(encode_json(chunk))

    def _to_chunk(self, event: _Event) -> dict[str, Any] | None:
        """Return the chunk of a chat completion; None for events without a content."""
        match event.type:
            case "message":
                return self._whole(event)
            case "message_start" if event.message is not None:
                return {"usage": self._usage(event.message.usage)}
            case "content_block_start" if event.content_block is not None:
                return self._start(event.content_block)
            case "content_block_delta" if event.delta is not None:
                return self._grow(event.delta)
            case "content_block_stop" if not self._has_arguments:
                self._has_arguments = True
                return self._call(arguments="{}")
            case "message_delta" if event.delta is not None and event.delta.stop_reason is not None:
                return self._end({"delta": {}}, event.delta.stop_reason, event.delta.stop_sequence, event.usage)
            case "error":
                kind = event.error.get("type") if isinstance(event.error, dict) else None
                message = event.error.get("message") if isinstance(event.error, dict) else event.error
                return {"error": {"message": str(message), "code": _STATUSES.get(str(kind))}}
        return None

    def _start(self, block: _Block) -> dict[str, Any] | None:
        if block.type == "tool_use":
            self._calls += 1
            arguments = encode_json(block.input).decode() if block.input else ""
            self._has_arguments = bool(arguments)
            return self._call(name=block.name, arguments=arguments)
        return _delta(content=block.text, reasoning_content=block.thinking)

    def _grow(self, delta: _Delta) -> dict[str, Any] | None:
        if delta.partial_json:
            self._has_arguments = True
            return self._call(arguments=delta.partial_json)
        return _delta(content=delta.text, reasoning_content=delta.thinking)

    def _call(self, **function: str) -> dict[str, Any] | None:
        return _delta(tool_calls=[{"index": self._calls - 1, "function": function}]) if self._calls else None

    def _whole(self, message: _Message) -> dict[str, Any]:
        calls = [block for block in message.content if block.type == "tool_use"]
        fields = {
            "content": "".join(block.text for block in message.content),
            "reasoning_content": "".join(block.thinking for block in message.content),
            "tool_calls": [
                {
                    "index": index,
                    "function": {"name": block.name, "arguments": encode_json(block.input or {}).decode()},
                }
                for index, block in enumerate(calls)
            ],
        }
        return self._end({"message": fields}, message.stop_reason or "", message.stop_sequence, message.usage)

    def _end(
        self, choice: dict[str, Any], reason: str, stop_sequence: str | None, usage: _Usage | None
    ) -> dict[str, Any]:
        last = {**choice, "finish_reason": _FINISHES.get(reason, "stop"), "stop_reason": stop_sequence}
        return {"choices": [last], "usage": self._usage(usage)}

    def _usage(self, reported: _Usage | None) -> dict[str, Any] | None:
        """Return the token counts so far in the form of chat completions. Counts of a later event replace earlier
        ones."""
        if reported is not None:
            for name in _Usage.__struct_fields__:
                value = getattr(reported, name)
                if value is not None:
                    setattr(self._counts, name, value)
        counts = self._counts
        numbers = (counts.input_tokens, counts.cache_read_input_tokens or 0, counts.cache_creation_input_tokens or 0)
        if not all(type(number) is int for number in numbers):
            return None
        details = counts.output_tokens_details
        thinking = details.get("thinking_tokens") if isinstance(details, dict) else None
        return {
            "prompt_tokens": sum(numbers),
            "prompt_tokens_details": {"cached_tokens": numbers[1]},
            "completion_tokens": counts.output_tokens,
            "completion_tokens_details": {"reasoning_tokens": thinking},
        }


def _delta(**fields: Any) -> dict[str, Any] | None:
    present = {name: value for name, value in fields.items() if value}
    return {"choices": [{"delta": present}]} if present else None
