"""A conversation as a sequence of integers, for engines that take messages and not tokens.

Characters are their code points. What stands between them is marks beyond Unicode, which no text can hold:

    chat = [OPTIONS json] *( MESSAGE json CONTENT characters *( PART packed CONTENT characters ) END )
    text = characters

A part is what is no text, an image for example: its JSON, two bytes a character.

The last message of a chat may lack its END: then the answer goes on with it. So a prompt is filled, forked and
compared like any other, and the context that sends it turns it back into what the client said.
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
"""The first number that is no character."""
OPTIONS, MESSAGE, CONTENT, END, PART = range(_MARKS, _MARKS + 5)
PART_WEIGHT = 4_000
"""Characters that a part which is no text is reckoned as: an image is some thousand tokens."""
_AT_ONCE = 4096
"""Numbers that are decoded at a time, at first."""


class TranscriptTokenizer:
    """A `PromptTokenizer` whose tokens are characters. Messages stay messages: no template is applied."""

    is_passthrough = True
    chat_template: str | None = None
    bos_text = ""
    special_texts: Mapping[str, str] = MappingProxyType({})
    adds_bos = False
    control_pattern: re.Pattern[str] | None = None

    def __init__(self) -> None:
        self.control: dict[str, int] = {}

    def encode(self, text: str, *, after: Place = "text", most: int | None = None) -> "array[int]":
        """The text's characters, the same wherever it stands."""
        return characters(text)

    def fewest(self, text: str) -> int:
        """Return the number of the text's characters."""
        return len(text)

    def decode(self, tokens: Sequence[int], *, skip_special: bool = True) -> str:
        """The characters' text."""
        return _text(array("i", [token for token in tokens if token < _MARKS]))

    def token_bytes(self, token: int) -> bytes:
        """The character's."""
        return chr(token).encode(errors="replace") if token < _MARKS else b""


@dataclass
class Transcript:
    """What a sequence says. `messages`: of a chat, with `options` of its request; `text`: of what is no chat.
    `unfinished`: the answer goes on with the last message. Contents are texts, or lists of parts as requests have
    them."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    text: str | None = None
    unfinished: bool = False


class Written(array):  # type: ignore[type-arg]
    """A whole conversation as a sequence, with what it says, so that nobody has to read it. Not to be changed.
    `weight`: see `graph.call.Text`."""

    said: Transcript
    weight: int | None = None


def write(options: Mapping[str, Any], messages: Sequence[dict[str, Any]], *, unfinished: bool = False) -> Written:
    """A conversation; contents as in `Transcript`. `unfinished`: the answer goes on with the last message."""
    tokens, lighter = Written("i"), 0
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
                    lighter += len(mark) - PART_WEIGHT
        tokens.append(END)
    if unfinished:
        tokens.pop()
    tokens.weight = len(tokens) - lighter if lighter else None
    tokens.said = Transcript(list(messages), dict(options), unfinished=unfinished)
    return tokens


def characters(text: str) -> "array[int]":
    """A text as numbers."""
    return array("i", _codes(text))


def _codes(text: str) -> bytes:
    return text.encode("utf-32-le", errors="surrogatepass")


def _text(numbers: "array[int]") -> str:
    return numbers.tobytes().decode("utf-32-le", errors="surrogatepass")


def options_mark(options: Mapping[str, Any]) -> "array[int]":
    """What is put before all messages, if a request has options."""
    return _marked(OPTIONS, options)


def message_mark(message: Mapping[str, Any]) -> "array[int]":
    """What is put before a message's content; END comes behind it. `message`: all but its content."""
    numbers = _marked(MESSAGE, message)
    numbers.append(CONTENT)
    return numbers


def part_mark(part: Mapping[str, Any]) -> "array[int]":
    """What stands in a message's content for what is no text."""
    data = json.dumps(part).encode()
    packed = (data + b" " * (len(data) % 2)).decode("utf-16-le")  # of ASCII, so that no two of these belong together
    numbers = array("i", (PART,))
    numbers.frombytes(_codes(packed))
    numbers.append(CONTENT)
    return numbers


def _part(packed: str) -> Any:
    return json.loads(packed.encode("utf-16-le"))


@lru_cache(16)
def _role_mark(role: str) -> "array[int]":
    """What is put before most messages."""
    return message_mark({"role": role})


def _marked(mark: int, content: Mapping[str, Any]) -> "array[int]":
    numbers = array("i", (mark,))
    numbers.extend(characters(json_codec.encode(content).decode()))
    return numbers


def read(tokens: "array[int]") -> Transcript:
    """What they say. Raises ValueError if nothing here wrote them."""
    if isinstance(tokens, Written):
        return tokens.said
    if not tokens or tokens[0] < _MARKS:
        return Transcript(text=_text(tokens))
    found = Transcript()
    for mark, said in _parts(tokens):
        if mark == OPTIONS:
            found.options = msgspec.json.decode(said)
        elif mark == MESSAGE:
            found.messages.append(msgspec.json.decode(said))
            found.unfinished = True
        elif mark == CONTENT:
            _say(found.messages[-1], said)
        elif mark == PART:
            message = found.messages[-1]
            if isinstance(message["content"], str):
                before, message["content"] = message["content"], []
                _say(message, before)
            message["content"].append(_part(said))
        elif said:
            raise ValueError("there is text between two messages")
        else:
            found.unfinished = False
    return found


def _say(message: dict[str, Any], text: str) -> None:
    """Text of the content: all of it, or what stands before, between or behind its other parts."""
    content = message.get("content")
    if content is None:
        message["content"] = text
    elif text:
        content.append({"type": "text", "text": text})


def _parts(tokens: "array[int]") -> Iterator[tuple[int, str]]:
    """Marks, and the text behind each."""
    numbers = memoryview(tokens)
    at = 0
    while at < len(numbers):
        mark = numbers[at]
        text, at = _until_mark(numbers, at + 1)
        yield mark, text


def _until_mark(numbers: memoryview, at: int) -> tuple[str, int]:
    """The text from there to the next mark, and where that is. What decodes it stops at what is no character, and so
    finds it without a look at each in Python. It is given a little at a time, since it makes room for all of that."""
    texts, count = [], _AT_ONCE
    while at < len(numbers):
        piece = numbers[at : at + count].cast("B")
        try:
            texts.append(str(piece, "utf-32-le", "surrogatepass"))
            at += len(piece) // 4
            count *= 2  # so long texts need few pieces
        except UnicodeDecodeError as error:
            texts.append(str(piece[: error.start], "utf-32-le", "surrogatepass"))
            at += error.start // 4
            break
    return "".join(texts), at
