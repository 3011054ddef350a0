"""Parse the answers of upstream servers with Anthropic's API, streamed or whole.

Each event becomes the chunk of a chat completion with the same content, which the parser of these reads. So tool calls,
limits and faults have one implementation.
"""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from gateway.engines.anthropic.thinking_memory import Block
from gateway.engines.openai.stream_parser import AnswerParser, ParsedPiece
from gateway.prompts.tool_calls.formats import INVALID_JSON
from gateway.runtime.json_codec import BadJson, decode_json, encode_json


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
    signature: str = ""
    data: str = ""
    name: str = ""
    input: Any = None


class _Delta(msgspec.Struct):
    type: str = ""
    text: str = ""
    thinking: str = ""
    signature: str = ""
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
    index: int | None = None
    message: _Message | None = None
    content_block: _Block | None = None
    delta: _Delta | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Event)
_FINISHES = {"max_tokens": "length", "model_context_window_exceeded": "length", "refusal": "content_filter"}
"""Finish reason of a chat completion for each of Anthropic's stop reasons; `stop` for those that are not listed."""
_STATUSES = {"invalid_request_error": 400, "request_too_large": 413, "not_found_error": 404, "permission_error": 403}
"""Statuses of errors in a stream that another attempt would not mend, by their types."""


_MAX_THINKING = 4 << 20
"""Maximum size of the thinking of one answer that is remembered, in characters."""
_BLOCK_SIZE = 300
"""Size of a thinking block without its texts, in characters."""
RememberThinking = Callable[[str, Sequence[tuple[str, Any]], Sequence[Block]], None]
"""Stores the thinking blocks of an answer with this text and these tool calls."""


class MessageParser(AnswerParser):
    """Incremental parser of one message."""

    def __init__(self, *, remember: RememberThinking | None = None, **options: Any) -> None:
        """`remember`: gets the thinking blocks at the end of an answer that has some. `options`: those of
        `AnswerParser`."""
        super().__init__(**options)
        self._remember = remember
        self._thinking: list[dict[str, Any]] = []
        """Thinking blocks, for the next request of the conversation. Their texts are lists of pieces until the end."""
        self._thinking_size = 0
        self._texts: list[str] = []
        self._inputs: list[tuple[str, list[str]]] = []
        """Name of each tool call, and the pieces of its arguments."""
        self._positions: dict[int | None, int] = {}
        """Position of each tool call among the calls, by the index of its block."""
        self._without_arguments: set[int] = set()
        """Positions of the tool calls that have no arguments yet."""
        self._is_over = False
        """Whether the message has ended. Events after it are ignored."""
        self._counts = _Usage()

    def _push(self, event: bytes) -> ParsedPiece | None:
        chunk = self._to_chunk(_decoder.decode(event))
        return None if chunk is None else super()._push(encode_json(chunk))

    def _to_chunk(self, event: _Event) -> dict[str, Any] | None:
        """Return the chunk of a chat completion; None for events without a content."""
        if self._is_over:
            return None
        match event.type:
            case "message_stop":
                self._is_over = True
            case "message":
                return self._whole(event)
            case "message_start" if event.message is not None:
                return {"usage": self._usage(event.message.usage)}
            case "content_block_start" if event.content_block is not None:
                return self._start(event.content_block, event.index)
            case "content_block_delta" if event.delta is not None:
                return self._grow(event.delta, event.index)
            case "content_block_stop" if self._positions.get(event.index) in self._without_arguments:
                return self._call(event.index, arguments="{}")
            case "message_delta" if event.delta is not None and event.delta.stop_reason is not None:
                return self._end({"delta": {}}, event.delta.stop_reason, event.delta.stop_sequence, event.usage)
            case "error":
                kind = event.error.get("type") if isinstance(event.error, dict) else None
                message = event.error.get("message") if isinstance(event.error, dict) else event.error
                return {"error": {"message": str(message), "code": _STATUSES.get(str(kind))}}
        return None

    def _collect(self, block: _Block | _Delta, index: int | None) -> None:
        """Record the parts of a block, or of a delta, that the next request needs. `index`: that of the block."""
        self._texts.append(block.text)
        if isinstance(block, _Delta):
            if block.partial_json and index in self._positions:
                self._inputs[self._positions[index]][1].append(block.partial_json)
        elif block.type == "tool_use":
            self._positions[index] = len(self._inputs)
            self._inputs.append((block.name, [encode_json(block.input).decode()] if block.input else []))
        elif block.type == "thinking":
            self._add_thinking({"type": block.type, "thinking": [], "signature": []}, _BLOCK_SIZE)
        elif block.type == "redacted_thinking":
            self._add_thinking({"type": block.type, "data": block.data}, _BLOCK_SIZE + len(block.data))
        if (block.thinking or block.signature) and self._thinking and "signature" in self._thinking[-1]:
            self._thinking_size += len(block.thinking) + len(block.signature)
            if self._thinking_size <= _MAX_THINKING:
                self._thinking[-1]["thinking"].append(block.thinking)
                self._thinking[-1]["signature"].append(block.signature)

    def _add_thinking(self, block: dict[str, Any], size: int) -> None:
        """Record a block, unless the thinking is too large to be remembered."""
        self._thinking_size += size
        if self._thinking_size <= _MAX_THINKING:
            self._thinking.append(block)

    def _end_thinking(self) -> None:
        """Pass on the thinking blocks of an answer that has ended."""
        if self._remember is not None and self._thinking and self._thinking_size <= _MAX_THINKING:
            calls = [(name, _parse_input("".join(pieces))) for name, pieces in self._inputs]
            blocks = [
                {name: "".join(value) if isinstance(value, list) else value for name, value in block.items()}
                for block in self._thinking
            ]
            self._remember("".join(self._texts), calls, blocks)

    def _start(self, block: _Block, index: int | None) -> dict[str, Any] | None:
        self._collect(block, index)
        if block.type == "tool_use":
            self._without_arguments.add(self._positions[index])
            return self._call(
                index, name=block.name, arguments=encode_json(block.input).decode() if block.input else ""
            )
        return _delta(content=block.text, reasoning_content=block.thinking)

    def _grow(self, delta: _Delta, index: int | None) -> dict[str, Any] | None:
        self._collect(delta, index)
        if delta.partial_json:
            return self._call(index, arguments=delta.partial_json)
        return _delta(content=delta.text, reasoning_content=delta.thinking)

    def _call(self, index: int | None, **function: str) -> dict[str, Any] | None:
        """Return the chunk for a part of the tool call in the block with this index."""
        position = self._positions.get(index)
        if position is None:
            return None
        if function["arguments"]:
            self._without_arguments.discard(position)
        return _delta(tool_calls=[{"index": position, "function": function}])

    def _whole(self, message: _Message) -> dict[str, Any]:
        for index, block in enumerate(message.content):
            self._collect(block, index)
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
        self._end_thinking()
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


def _parse_input(text: str) -> Any:
    """Return the arguments of a tool call as the next request has them."""
    try:
        value = decode_json(text.encode(errors="replace")) if text.strip() else {}
    except BadJson:
        value = None
    return value if isinstance(value, dict) else {INVALID_JSON: text}


def _delta(**fields: Any) -> dict[str, Any] | None:
    present = {name: value for name, value in fields.items() if value}
    return {"choices": [{"delta": present}]} if present else None
