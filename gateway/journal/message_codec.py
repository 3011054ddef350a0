"""Store messages of a prompt as integers, the journal's form of prompts.

Characters are their code points. Marks between them are numbers beyond Unicode, which no text can contain:

    messages = [FIELDS json] *( MESSAGE json CONTENT characters *( PART packed CONTENT characters ) END )
    text = characters

A part is something other than text, such as an image: its JSON, two bytes in one number. A segment may begin in the
middle of a content, where the segment before ended.
"""

import json
from array import array
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from gateway.graph.segments import Messages
from gateway.runtime.json_codec import encode_json

_MARKS = 0x110000
"""First number that is not a character."""
_FIELDS, _MESSAGE, _CONTENT, _END, _PART = range(_MARKS, _MARKS + 5)
_FIRST_SLICE = 4096
"""Number of integers that are decoded at a time, at first."""


def characters(text: str) -> "array[int]":
    """Return the code points of a text."""
    numbers = array("i")
    numbers.frombytes(text.encode("utf-32-le", errors="surrogatepass"))
    return numbers


def text_of(numbers: "array[int]") -> str:
    """Return the text with these code points."""
    return numbers.tobytes().decode("utf-32-le", errors="surrogatepass")


def encode_messages(segment: Messages) -> "array[int]":
    """Return a segment as integers, in the format that this module describes."""
    numbers = _encode(_FIELDS, segment.fields) if segment.fields else array("i")
    for index, message in enumerate(segment.messages):
        if index or not segment.continues:
            numbers.extend(_encode(_MESSAGE, {key: value for key, value in message.items() if key != "content"}))
            numbers.append(_CONTENT)
        content = message["content"]
        for part in (content,) if isinstance(content, str) else content:
            if isinstance(part, str):
                numbers.extend(characters(part))
            elif part["type"] == "text":
                numbers.extend(characters(part["text"]))
            else:
                numbers.extend(_encode_part(part))
        if index < len(segment.messages) - 1 or not segment.is_open:
            numbers.append(_END)
    return numbers


def has_marks(numbers: "array[int]") -> bool:
    """Return whether the integers of a stored segment are messages, not tokens or characters."""
    return bool(numbers) and max(numbers) >= _MARKS


def decode_messages(numbers: "array[int]", weight: int | None) -> Messages:
    """Return the segment that `encode_messages` stored as integers. Raises ValueError if other code encoded them.

    `weight`: see `Messages`.
    """
    fields: dict[str, Any] = {}
    messages: list[dict[str, Any]] = []
    is_open = continues = bool(numbers) and numbers[0] not in (_FIELDS, _MESSAGE)
    if continues:
        messages.append({})
    for mark, text in _parts(numbers):
        if mark == _FIELDS:
            fields = msgspec.json.decode(text)
        elif mark == _MESSAGE:
            messages.append(msgspec.json.decode(text))
            is_open = True
        elif mark == _CONTENT:
            _append_text(messages[-1], text)
        elif mark == _PART:
            message = messages[-1]
            if isinstance(message["content"], str):
                before, message["content"] = message["content"], []
                _append_text(message, before)
            message["content"].append(json.loads(text.encode("utf-16-le")))
        elif text:
            raise ValueError("invalid sequence: there is text between two messages")
        else:
            is_open = False
    return Messages(messages, fields, continues, is_open, len(numbers), weight)


def _encode(mark: int, content: Mapping[str, Any]) -> "array[int]":
    numbers = array("i", (mark,))
    numbers.extend(characters(encode_json(content).decode()))
    return numbers


def _encode_part(part: Mapping[str, Any]) -> "array[int]":
    data = json.dumps(part).encode()
    packed = (data + b" " * (len(data) % 2)).decode("utf-16-le")  # JSON is ASCII, so there are no surrogates
    return array("i", (_PART, *characters(packed), _CONTENT))


def _append_text(message: dict[str, Any], text: str) -> None:
    """Add text to a message's content: as the whole content, or as one more part."""
    content = message.get("content")
    if content is None:
        message["content"] = text
    elif text:
        content.append({"type": "text", "text": text})


def _parts(numbers: "array[int]") -> Iterator[tuple[int, str]]:
    """Yield each mark, and the text after it. Text at the beginning is content."""
    view = memoryview(numbers)
    position = 0
    if numbers and numbers[0] not in (_FIELDS, _MESSAGE):
        text, position = _until_mark(view, 0)
        yield _CONTENT, text
    while position < len(view):
        mark = view[position]
        text, position = _until_mark(view, position + 1)
        yield mark, text


def _until_mark(numbers: memoryview, position: int) -> tuple[str, int]:
    """Return the text from a position to the next mark, and the position of that mark.

    The UTF-32 decoder stops at numbers that are not characters, so Python need not compare each number. It allocates
    memory for its whole input, so the input is passed in slices of growing size.
    """
    texts, count = [], _FIRST_SLICE
    while position < len(numbers):
        piece = numbers[position : position + count].cast("B")
        try:
            texts.append(str(piece, "utf-32-le", "surrogatepass"))
            position += len(piece) // 4
            count *= 2  # so long texts need few pieces
        except UnicodeDecodeError as error:
            texts.append(str(piece[: error.start], "utf-32-le", "surrogatepass"))
            position += error.start // 4
            break
    return "".join(texts), position
