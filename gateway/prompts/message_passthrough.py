"""Encode a conversation as a sequence of integers, for engines that accept messages instead of tokens.

Characters are their code points. Marks between them are numbers beyond Unicode, which no text can contain:

    chat = [OPTIONS json] *( MESSAGE json CONTENT characters *( PART packed CONTENT characters ) END )
    text = characters

A part is something other than text, such as an image: its JSON, two bytes in one number.

The last message of a chat may lack its END: then the answer continues it. With this encoding the gateway fills, forks
and compares such prompts like any other, and the engine context decodes them into the client's messages again.
"""

import json
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import msgspec

from engine.tokenizer import Place
from gateway.runtime import json_codec

_MARKS = 0x110000
"""First number that is not a character."""
OPTIONS, MESSAGE, CONTENT, END, PART = range(_MARKS, _MARKS + 5)
PART_WEIGHT = 4_000
"""Weight of a part that is not text, in characters: an image has some thousand tokens."""
_FIRST_SLICE = 4096
"""Number of integers that are decoded at a time, at first."""


class PassthroughTokenizer:
    """A `PromptTokenizer` whose tokens are characters. It applies no chat template."""

    is_passthrough = True
    chat_template: str | None = None
    bos_text = ""
    special_texts: Mapping[str, str] = MappingProxyType({})
    adds_bos = False
    control_pattern: re.Pattern[str] | None = None

    def __init__(self) -> None:
        self.control: dict[str, int] = {}

    def encode(self, text: str, *, after: Place = "text", most: int | None = None) -> "array[int]":
        """Return the text's characters. The arguments `after` and `most` have no effect."""
        return characters(text)

    def fewest(self, text: str) -> int:
        """Return the number of the text's characters."""
        return len(text)

    def decode(self, tokens: Sequence[int], *, skip_special: bool = True) -> str:
        """Return the text of the characters."""
        return _text(array("i", [token for token in tokens if token < _MARKS]))

    def token_bytes(self, token: int) -> bytes:
        """Return the character's UTF-8 bytes."""
        return chr(token).encode(errors="replace") if token < _MARKS else b""


@dataclass
class PassthroughPrompt:
    """A decoded sequence: a chat, or a text.

    `messages`: messages of a chat; contents are texts, or lists of parts as in requests. `options`: other fields of
    the chat's request. `text`: the text if it is not a chat. `unfinished`: the answer continues the last message.
    """

    messages: list[dict[str, Any]] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    text: str | None = None
    unfinished: bool = False


class EncodedPrompt(array):  # type: ignore[type-arg]
    """A whole conversation as a sequence, together with its decoded form, so that it need not be decoded. Do not change
    it. `weight`: see `graph.call.Text`."""

    decoded: PassthroughPrompt
    weight: int | None = None


def write(options: Mapping[str, Any], messages: Sequence[dict[str, Any]], *, unfinished: bool = False) -> EncodedPrompt:
    """Return an encoded conversation; contents as in `PassthroughPrompt`. `unfinished`: the answer continues the last
    message."""
    tokens, discount = EncodedPrompt("i"), 0
    if options:
        tokens.extend(options_mark(options))
    for message in messages:
        if len(message) == 2 and "role" in message:
            tokens.extend(_role_mark(message["role"]))
        else:
            tokens.extend(message_mark({key: value for key, value in message.items() if key != "content"}))
        content = message["content"]
        if isinstance(content, str):
            tokens.frombytes(_codes(content))
        else:
            for part in content:
                if part["type"] == "text":
                    tokens.frombytes(_codes(part["text"]))
                else:
                    mark = part_mark(part)
                    tokens.extend(mark)
                    discount += len(mark) - PART_WEIGHT
        tokens.append(END)
    if unfinished:
        tokens.pop()
    tokens.weight = len(tokens) - discount if discount else None
    tokens.decoded = PassthroughPrompt(list(messages), dict(options), unfinished=unfinished)
    return tokens


def characters(text: str) -> "array[int]":
    """Return a text as numbers."""
    return array("i", _codes(text))


def _codes(text: str) -> bytes:
    return text.encode("utf-32-le", errors="surrogatepass")


def _text(numbers: "array[int]") -> str:
    return numbers.tobytes().decode("utf-32-le", errors="surrogatepass")


def options_mark(options: Mapping[str, Any]) -> "array[int]":
    """Return what precedes all messages, if a request has options."""
    return _encode(OPTIONS, options)


def message_mark(message: Mapping[str, Any]) -> "array[int]":
    """Return what precedes a message's content; END follows the content. `message`: all fields but its content."""
    numbers = _encode(MESSAGE, message)
    numbers.append(CONTENT)
    return numbers


def part_mark(part: Mapping[str, Any]) -> "array[int]":
    """Return the encoded form of a part that is not text, for a message's content."""
    data = json.dumps(part).encode()
    packed = (data + b" " * (len(data) % 2)).decode("utf-16-le")  # JSON is ASCII, so there are no surrogates
    numbers = array("i", (PART,))
    numbers.frombytes(_codes(packed))
    numbers.append(CONTENT)
    return numbers


def _part(packed: str) -> Any:
    return json.loads(packed.encode("utf-16-le"))


@lru_cache(16)
def _role_mark(role: str) -> "array[int]":
    """Return what precedes most messages: those with no field but role and content."""
    return message_mark({"role": role})


def _encode(mark: int, content: Mapping[str, Any]) -> "array[int]":
    numbers = array("i", (mark,))
    numbers.extend(characters(json_codec.encode(content).decode()))
    return numbers


def read(tokens: "array[int]") -> PassthroughPrompt:
    """Return a decoded sequence. Raises ValueError if it was not encoded here."""
    if isinstance(tokens, EncodedPrompt):
        return tokens.decoded
    if not tokens or tokens[0] < _MARKS:
        return PassthroughPrompt(text=_text(tokens))
    found = PassthroughPrompt()
    for mark, text in _parts(tokens):
        if mark == OPTIONS:
            found.options = msgspec.json.decode(text)
        elif mark == MESSAGE:
            found.messages.append(msgspec.json.decode(text))
            found.unfinished = True
        elif mark == CONTENT:
            _append_text(found.messages[-1], text)
        elif mark == PART:
            message = found.messages[-1]
            if isinstance(message["content"], str):
                before, message["content"] = message["content"], []
                _append_text(message, before)
            message["content"].append(_part(text))
        elif text:
            raise ValueError("invalid sequence: there is text between two messages")
        else:
            found.unfinished = False
    return found


def _append_text(message: dict[str, Any], text: str) -> None:
    """Add text to a message's content: as the whole content, or as one more part."""
    content = message.get("content")
    if content is None:
        message["content"] = text
    elif text:
        content.append({"type": "text", "text": text})


def _parts(tokens: "array[int]") -> Iterator[tuple[int, str]]:
    """Yield each mark, and the text after it."""
    numbers = memoryview(tokens)
    position = 0
    while position < len(numbers):
        mark = numbers[position]
        text, position = _until_mark(numbers, position + 1)
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
