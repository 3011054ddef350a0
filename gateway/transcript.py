"""A conversation as a sequence of integers, for engines that take messages and not tokens.

Characters are their code points. What stands between them is marks beyond Unicode, which no text can hold:

    chat = [OPTIONS json] *( MESSAGE json CONTENT characters END )
    text = characters

The last message of a chat may lack its END: then the answer goes on with it. So a prompt is filled, forked and
compared like any other, and the context that sends it turns it back into what the client said.
"""

import json
import re
import secrets
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.tokenizer import Place

_MARKS = 0x110000
"""The first number that is no character."""
OPTIONS, MESSAGE, CONTENT, END = range(_MARKS, _MARKS + 4)

_NONCE = secrets.token_hex(8)
_NAMES = {name: f"\ue000{_NONCE}-{name}\ue001" for name in ("options", "message", "content", "end")}
"""The marks as the template writes them; no client can."""
TEMPLATE = (
    "{% if request %}{{ options_mark }}{{ request | tojson }}{% endif %}"
    "{% for message in messages %}"
    "{{ message_mark }}{{ dict(message, content='') | tojson }}{{ content_mark }}{{ message.content }}{{ end_mark }}"
    "{% endfor %}"
)
for _name, _mark in _NAMES.items():
    TEMPLATE = TEMPLATE.replace(f"{{{{ {_name}_mark }}}}", _mark)


class TranscriptTokenizer:
    """See `gateway.prompt.PromptTokenizer`: characters for tokens, and a template that writes messages as they are."""

    passes_on = True
    chat_template: str | None = TEMPLATE
    bos_text = ""
    eos_text = ""
    adds_bos = False

    def __init__(self) -> None:
        self.control = dict(zip(_NAMES.values(), (OPTIONS, MESSAGE, CONTENT, END), strict=True))
        self.control_pattern: re.Pattern[str] | None = re.compile(f"({'|'.join(map(re.escape, self.control))})")

    def encode(self, text: str, *, after: Place = "text") -> "array[int]":
        """The text's characters, the same wherever it stands."""
        return characters(text)

    def decode(self, tokens: Sequence[int], *, skip_special: bool = True) -> str:
        """The characters' text."""
        return _text(array("i", [token for token in tokens if token < _MARKS]))

    def token_bytes(self, token: int) -> bytes:
        """The character's."""
        return chr(token).encode(errors="replace") if token < _MARKS else b""


@dataclass
class Transcript:
    """What a sequence says. `messages`: of a chat, with `options` of its request; `text`: of what is no chat.
    `unfinished`: the answer goes on with the last message."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    text: str | None = None
    unfinished: bool = False


def characters(text: str) -> "array[int]":
    """A text as numbers."""
    numbers = array("i")
    numbers.frombytes(text.encode("utf-32-le", errors="surrogatepass"))
    return numbers


def _text(numbers: "array[int]") -> str:
    return numbers.tobytes().decode("utf-32-le", errors="surrogatepass")


def read(tokens: "array[int]") -> Transcript:
    """What they say. Raises ValueError if no template of ours wrote them."""
    if not tokens or tokens[0] < _MARKS:
        return Transcript(text=_text(tokens))
    found = Transcript()
    for mark, said in _parts(tokens):
        if mark == OPTIONS:
            found.options = json.loads(said)
        elif mark == MESSAGE:
            found.messages.append(json.loads(said))
            found.unfinished = True
        elif mark == CONTENT:
            found.messages[-1]["content"] = said
        elif said:
            raise ValueError("there is text between two messages")
        else:
            found.unfinished = False
    return found


def _parts(tokens: "array[int]") -> Iterator[tuple[int, str]]:
    """Marks, and the text behind each."""
    marks = [at for at, token in enumerate(tokens) if token >= _MARKS]
    for at, end in zip(marks, [*marks[1:], len(tokens)], strict=True):
        yield tokens[at], _text(tokens[at + 1 : end])
