"""Segments of a prompt: known text, references and slots."""

import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, ClassVar, Literal, Protocol

from engine.sampling_params import SamplingParams
from gateway.graph.references import Reference
from gateway.graph.transform import Transform


@dataclass(frozen=True)
class Text:
    """Known text of a prompt, as tokens that no text next to it can change.

    `weight`: number of tokens for estimates, if it differs from their number: an image may have many tokens and be
    prefilled fast.
    """

    tokens: Sequence[int]
    weight: int | None = None

    @property
    def length(self) -> int:
        """Number of tokens for estimates."""
        return len(self.tokens) if self.weight is None else self.weight


@dataclass(frozen=True)
class Characters:
    """Known text of a prompt.

    An engine that accepts text gets it unchanged. For an engine that accepts tokens it is tokenised together with the
    texts, values and generated texts next to it, up to the next `Text`.

    `adds_space`: whether the vocabulary puts a space before this text, or before the value after it if it is empty.
    `weight`: number of tokens for estimates, if the engine accepts tokens.
    """

    text: str
    adds_space: bool = False
    weight: int | None = None

    @property
    def length(self) -> int:
        """Number of tokens for estimates, or number of characters if the engine accepts text."""
        return len(self.text) if self.weight is None else self.weight


_HINTS = frozenset({"cache_control"})
"""Fields that no model reads. Clients move them from turn to turn, so digests and prefix keys do not contain them."""


@dataclass(frozen=True)
class Messages:
    """Known messages of a prompt, for an engine that accepts messages instead of tokens.

    `messages`: as in chat requests of OpenAI's API; a content is a text or a list of parts. `fields`: other fields of
    the request, on the first segment. `continues`: the first message has only a content, which continues the message
    before. `is_open`: the last message continues in the next segment. `size`: number of characters of all messages as
    JSON. `weight`: number of characters for estimates, if it differs: an image may have few tokens.
    """

    messages: Sequence[Mapping[str, Any]]
    fields: Mapping[str, Any] = field(default_factory=dict)
    continues: bool = False
    is_open: bool = False
    size: int = 0
    weight: int | None = None
    digests: Sequence[bytes] | None = field(default=None, compare=False, repr=False)
    """Digests of the JSON beside the texts, in order: of `prompt_fields`, of each message without its content, and of
    each part that is not text. None if the journal has restored the segment: `json_digests` computes them then."""

    @property
    def prompt_fields(self) -> Mapping[str, Any]:
        """The fields that may change what the model reads."""
        if _HINTS.isdisjoint(self.fields):
            return self.fields
        return {name: value for name, value in self.fields.items() if name not in _HINTS}

    def json_digests(self) -> Sequence[bytes]:
        """Return `digests`. Long JSON would block the event loop, so who builds a segment computes them in a thread."""
        return self.digests if self.digests is not None else [json_digest(_json(value)) for value in json_of(self)]

    @property
    def length(self) -> int:
        """Number of characters for estimates."""
        return self.size if self.weight is None else self.weight


@dataclass(frozen=True)
class Input:
    """Place in a prompt where a variable's value goes.

    `where`: path of the request's field that contains it. `in_json`: the chat template writes the text around it as
    part of a JSON string, so the value is escaped in the same way.
    """

    reference: Reference
    where: str
    in_json: bool = False


REASONING_START, REASONING_END = "<think>", "</think>"
"""Tags around the reasoning that some models emit before their answer."""


@dataclass(frozen=True)
class Slot:
    """Place in a prompt where the model generates text.

    `name` None: the call's output. `thinks`: whether the generated text may begin with reasoning; `begun`: the prompt
    ends inside the reasoning. `heals`: whether the text before the slot may end inside a word or a token, which the
    generated text completes.
    """

    name: str | None
    sampling: SamplingParams
    transform: Transform | None = None
    where: str = "semantic.output"
    thinks: Literal["perhaps", "begun"] | None = None
    heals: bool = False


@dataclass(frozen=True)
class Trim:
    """Place in a prompt from which on white space is removed, because the chat template removes it from messages.

    `left`: white space up to the next visible character. `right`: white space before the next `Trim`. `lines`: only
    line feeds are removed, not all white space. With neither `left` nor `right`, the removal ends.
    """

    length: ClassVar[int] = 0
    left: bool = False
    right: bool = False
    lines: bool = False


def escape_json(text: str) -> str:
    """Return a text as it stands inside a JSON string that a chat template writes."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


class Trimmer:
    """Remover of white space from a text that arrives in pieces. See `Trim`."""

    def __init__(self, trim: Trim) -> None:
        self._left = trim.left
        self._right = trim.right
        self._characters = "\n" if trim.lines else None
        self._held: list[str] = []
        """White space that is removed unless visible text follows it."""

    def push(self, text: str) -> str:
        """Return the text that certainly stays. Its time is linear in the text."""
        if self._left:
            text = text.lstrip(self._characters)
            self._left = not text
        if not self._right:
            return text
        kept = text.rstrip(self._characters)
        if not kept:
            if text:
                self._held.append(text)
            return ""
        before, self._held = self._held, [text[len(kept) :]]
        return "".join([*before, kept])

    def release(self) -> str:
        """Return the white space that was held back, because visible text follows it. Remove nothing from now on."""
        text, self._held = "".join(self._held), []
        self._left = self._right = False
        return text

    @property
    def state(self) -> tuple[bool, bool, str | None, str]:
        """Whether it still removes characters on the left and on the right, which ones, and what it holds back."""
        return self._left, self._right, self._characters, "".join(self._held)


Segment = Text | Characters | Messages | Input | Slot | Trim
PromptContent = Sequence[int] | str | Messages
"""Content that fills an engine's context: tokens, or text and messages if the engine accepts no tokens."""


def content_size(content: PromptContent) -> int:
    """Return the number of tokens or characters."""
    return content.size if isinstance(content, Messages) else len(content)


def tokens_of_content(content: PromptContent) -> Sequence[int]:
    """Return the tokens, for an engine that accepts nothing else."""
    assert not isinstance(content, str | Messages), "this engine accepts tokens, not text or messages"
    return content


class Digest(Protocol):
    """A hash of `hashlib`."""

    def update(self, data: bytes, /) -> None:
        """Add data."""


def update_digest(digest: Digest, content: PromptContent) -> None:
    """Add the content of a prompt to a digest. A prompt has the same digest however it is divided into segments.

    Marks between texts begin with the byte 255, which no text in UTF-8 contains.
    """
    if isinstance(content, str):
        digest.update(content.encode(errors="surrogatepass"))
    elif not isinstance(content, Messages):
        digest.update(array("i", content).tobytes())
    else:
        digests = iter(content.json_digests())
        if content.prompt_fields:
            digest.update(b"\xfff" + next(digests))
        for index, message in enumerate(content.messages):
            if index or not content.continues:
                digest.update(b"\xffm" + next(digests) + b"\xffc")
            text = message["content"]
            for part in (text,) if isinstance(text, str) else text:
                if isinstance(part, str):
                    digest.update(part.encode(errors="surrogatepass"))
                elif part["type"] == "text":
                    digest.update(part["text"].encode(errors="surrogatepass"))
                else:
                    digest.update(b"\xffp" + next(digests) + b"\xffc")
            if index < len(content.messages) - 1 or not content.is_open:
                digest.update(b"\xffe")


def json_of(segment: Messages) -> Iterator[Mapping[str, Any]]:
    """Yield what a segment has beside texts, in the order of `Messages.digests`."""
    if fields := segment.prompt_fields:
        yield fields
    for index, message in enumerate(segment.messages):
        if index or not segment.continues:
            yield {name: value for name, value in message.items() if name != "content"}
        content = message["content"]
        if not isinstance(content, str):
            yield from (part for part in content if not isinstance(part, str) and part["type"] != "text")


def json_digest(encoded: bytes) -> bytes:
    """Return the digest of a JSON value."""
    return blake2b(encoded, digest_size=16).digest()


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode()
