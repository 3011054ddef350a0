"""Describe the prompt and the answer of a call as attributes of its span.

The form is that of the semantic conventions for generative AI: `gen_ai.input.messages` and `gen_ai.output.messages`,
each a list of messages with parts, as a JSON text. Each is bounded: long texts are cut in the middle and early messages
are left out, with a mark at each place.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import msgspec

from gateway.graph.call import Call
from gateway.graph.segments import Characters, Input, Messages, Segment, Slot, Text
from gateway.graph.variable import reasoning_of
from gateway.runtime.json_codec import BadJson, decode_json, encode_json
from gateway.telemetry.otlp_json import quote_once

DecodeTokens = Callable[[str, Sequence[int]], str]
"""Function that returns the text of tokens of a model."""

MAX_BYTES = 32_000
"""Maximum size of an attribute, in bytes of its JSON."""
_NOTICE_BYTES = 200
"""Space for the message that says how many messages were left out, in bytes."""
_MAX_TOKENS = 16_000
"""Number of tokens of a text from which those in the middle are not decoded."""
_HALF = MAX_BYTES // 2
_MARK = "… [cut] …"
"""Text that stands in place of what is left out."""
_CALL_BEGIN, _CALL_END = "<tool_call>", "</tool_call>"
"""Marks around a tool call in an answer of an upstream server, and of many models."""

_Part = dict[str, Any]
_Message = dict[str, Any]


def text_attributes(call: Call, decode: DecodeTokens) -> str:
    """Return the attributes with the texts of a call, joined by commas as JSON. `decode`: see `DecodeTokens`."""
    texts = {"gen_ai.input.messages": _input_messages(call, decode), "gen_ai.output.messages": _output_messages(call)}
    return ",".join(
        f'{{"key":"{key}","value":{{"stringValue":{quote_once(_encode(messages))}}}}}'
        for key, messages in texts.items()
        if messages
    )


# input


def _input_messages(call: Call, decode: DecodeTokens) -> list[_Message]:
    """Return the messages of a prompt for an upstream server. A prompt of tokens is one message, with the text that the
    model reads."""
    model, rendering = call.model or call.spec.model, call.spec.segments
    for fallback in call.spec.fallbacks:
        if fallback.model == model:
            rendering = fallback.segments
    if any(isinstance(segment, Messages) for segment in rendering):
        return _messages(call, rendering)
    pieces = []
    for segment in rendering:
        if isinstance(segment, Text):
            pieces.append(_decoded(model, segment.tokens, decode))
        elif isinstance(segment, Characters):
            pieces.append(segment.text)
        else:
            pieces.append(_value(call, segment))
    text = _join(pieces)
    return [{"role": "user", "parts": [_text_part(text)]}] if text else []


def _join(pieces: Iterable[str]) -> str:
    """Return the texts as one, without its middle if it is too long. Its size is unlimited: a prompt may repeat a large
    value thousands of times."""
    head: list[str] = []
    tail: deque[str] = deque()
    head_size = tail_size = 0
    is_cut = False
    for piece in pieces:
        if head_size < _HALF:
            head.append(piece[: _HALF - head_size])
            piece = piece[len(head[-1]) :]
            head_size += len(head[-1])
        if not piece:
            continue
        is_cut |= len(piece) > _HALF
        tail.append(piece[-_HALF:])
        tail_size += len(tail[-1])
        while tail_size - len(tail[0]) >= _HALF:
            tail_size -= len(tail.popleft())
            is_cut = True
    return "".join([*head, _MARK if is_cut else "", *tail])


def _decoded(model: str, tokens: Sequence[int], decode: DecodeTokens) -> str:
    if len(tokens) <= _MAX_TOKENS:
        return decode(model, tokens)
    half = _MAX_TOKENS // 2
    return decode(model, tokens[:half]) + _MARK + decode(model, tokens[-half:])


def _value(call: Call, segment: Segment) -> str:
    """Return the text of a reference, or of a slot that the prompt continues after."""
    match segment:
        case Input(reference):
            source = call.inputs.get(reference.name) or call.slots.get(reference.name)
            if reference.path:  # a part of the value, which only the attempt has parsed
                return str(reference)
            return "" if source is None else source.text
        case Slot(name) if name is not None:
            return call.slots[name].text
    return ""


def _messages(call: Call, segments: Sequence[Segment]) -> list[_Message]:
    """Return the messages of the segments, with the values of references in their places."""
    found: list[tuple[Mapping[str, Any], list[str | _Part]]] = []
    for segment in segments:
        if isinstance(segment, Messages):
            for index, message in enumerate(segment.messages):
                if index or not segment.continues or not found:
                    found.append((message, []))
                found[-1][1].extend(_content_parts(message.get("content")))
        elif found and (text := _value(call, segment)):
            found[-1][1].append(text)
    return [_message(head, content) for head, content in found]


def _message(head: Mapping[str, Any], content: Iterable[str | _Part]) -> _Message:
    """Return a message. `head`: its fields beside the content."""
    parts: list[_Part] = []
    if reasoning := head.get("reasoning_content"):
        parts.append({"type": "reasoning", "content": reasoning})
    role = str(head.get("role", "user"))
    for is_text, group in groupby(content, lambda part: isinstance(part, str)):
        if not is_text:
            parts += [part for part in group if isinstance(part, dict)]
            continue
        text = _join(part for part in group if isinstance(part, str))
        if role == "tool":
            parts.append({"type": "tool_call_response", "id": head.get("tool_call_id"), "response": text})
        else:
            parts.append(_text_part(text))
    parts += [_tool_call_part(tool_call) for tool_call in head.get("tool_calls") or ()]
    return {"role": role, "parts": parts}


def _content_parts(content: Any) -> Iterator[str | _Part]:
    for part in [content] if isinstance(content, str) else content or ():
        if isinstance(part, str):
            yield part
        elif isinstance(part.get("text"), str):
            yield part["text"]
        elif part.get("type") == "image_url":
            image = part.get("image_url")
            uri = str(image.get("url") if isinstance(image, Mapping) else image)
            head, comma, data = uri.partition(",")
            if uri.startswith("data:"):  # without its data: a part of an image cannot be shown
                uri = f"{head[:100]}{comma}{_MARK if data else ''}"
            yield {"type": "uri", "modality": "image", "uri": uri}
        else:  # only its type: the rest is audio or a file
            yield {"type": str(part.get("type", "unknown"))}


def _tool_call_part(tool_call: Mapping[str, Any]) -> _Part:
    function = tool_call.get("function") or {}
    part = {"type": "tool_call", "id": tool_call.get("id"), "name": function.get("name")}
    return {**part, "arguments": function.get("arguments")}


def _text_part(text: str) -> _Part:
    return {"type": "text", "content": text}


# output


def _output_messages(call: Call) -> list[_Message]:
    output = call.output
    parts = []
    if reasoning := reasoning_of(output.pieces):
        parts.append({"type": "reasoning", "content": reasoning})
    parts += _answer_parts(output.text)
    if not parts:
        return []
    reason = "error" if call.failure is not None else call.finish_reason or "stop"
    return [{"role": "assistant", "parts": parts, "finish_reason": reason}]


def _answer_parts(text: str) -> Iterator[_Part]:
    """Yield the texts and the tool calls of an answer. A tool call in another format is a text."""
    position = 0
    while (begin := text.find(_CALL_BEGIN, position)) >= 0:
        end = text.find(_CALL_END, begin)
        if end < 0:
            break
        try:
            found = decode_json(text[begin + len(_CALL_BEGIN) : end].encode(errors="replace"))
        except BadJson:
            found = None
        if before := text[position:begin].strip():
            yield _text_part(before)
        position = end + len(_CALL_END)
        if isinstance(found, dict) and isinstance(found.get("name"), str):
            yield {"type": "tool_call", "name": found["name"], "arguments": found.get("arguments")}
        else:
            yield _text_part(text[begin:position])
    rest = text[position:] if not position else text[position:].strip()
    if rest:
        yield _text_part(rest)


# limits


def _encode(messages: Sequence[_Message]) -> str:
    """Return messages as JSON of at most `MAX_BYTES`. The last ones are kept."""
    space = MAX_BYTES - _NOTICE_BYTES
    largest = space if len(messages) == 1 else space // 2
    pieces: list[bytes] = []
    for message in reversed(messages):
        piece = _encode_message(message, largest)
        space -= len(piece) + 1
        if space < 0:
            break
        pieces.append(piece)
    if left_out := len(messages) - len(pieces):
        notice = _text_part(f"[{left_out} messages before this one are cut]")
        pieces.append(encode_json({"role": "system", "parts": [notice]}))
    return f"[{b','.join(reversed(pieces)).decode()}]"


def _encode_message(message: _Message, max_bytes: int) -> bytes:
    """Return a message as JSON of at most `max_bytes`, with its texts cut."""
    limit = max_bytes
    while limit >= 16:
        parts = [{key: _cut(value, limit) for key, value in part.items()} for part in message["parts"]]
        encoded = encode_json({**message, "role": message["role"][:100], "parts": parts})
        if len(encoded) <= max_bytes:
            return encoded
        limit //= 2
    return encode_json({**message, "role": message["role"][:100], "parts": [_text_part("[cut]")]})


def _cut(value: Any, limit: int) -> Any:
    """Return a field of a part, with at most `limit` characters. A larger object becomes a text."""
    if value is None:
        return None
    if not isinstance(value, str):
        encoded = encode_json(value)
        if len(encoded) <= limit:
            return msgspec.Raw(encoded)
        value = encoded.decode()
    if len(value) <= limit:
        return value
    half = limit // 2
    return f"{value[:half]}{_MARK}{value[-half:]}"
