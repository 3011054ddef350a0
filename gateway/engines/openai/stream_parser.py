"""What a server streams, as pieces of text: the events of chats and completions, and calls of tools as text."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NamedTuple

import msgspec

from gateway.engines.protocol import ContextRefused
from gateway.graph.variable import Piece

_LONGEST_EVENT = 4 << 20
"""Maximum size of one event, in bytes."""
LONGEST_ANSWER = 256 << 20
"""Maximum size of an answer, in bytes of JSON or of events."""
_CALL_BEGINS, _CALL_ENDS = "<tool_call>\n", "\n</tool_call>"
"""How calls are written in a text: Hermes's way, which `gateway.prompts.tool_calls` reads."""
_TOO_LONG = re.compile(r"context (length|size|window)|maximum (context|model) len|too many tokens", re.IGNORECASE)
_TOO_LONG_CODES = ("context_length_exceeded", "exceed_context_size_error")


class Usage(NamedTuple):
    """Tokens; those `cached` are of the prompt, those of `reasoning` of the completion."""

    prompt: int
    cached: int
    completion: int
    reasoning: int = 0


@dataclass(frozen=True, slots=True)
class Logprob:
    """A token by its bytes, for its number is the server's own; see `engine.protocol.TokenLogprob`."""

    token: bytes
    logprob: float
    top: Sequence[tuple[bytes, float]]


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    index: int = 0
    function: _Function = msgspec.field(default_factory=_Function)


class _Message(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_Call] | None = None


class _Top(msgspec.Struct):
    token: str
    logprob: float
    raw: list[int] | None = msgspec.field(default=None, name="bytes")

    @property
    def text(self) -> bytes:
        return _raw(self.token) if self.raw is None else bytes(self.raw)


class _Token(_Top):
    top_logprobs: list[_Top] | None = None


class _Logprobs(msgspec.Struct):
    # of chats
    content: list[_Token] | None = None
    # of completions
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None

    @property
    def entries(self) -> tuple[Logprob, ...]:
        if self.content is not None:
            return tuple(
                Logprob(token.text, token.logprob, [(top.text, top.logprob) for top in token.top_logprobs or ()])
                for token in self.content
            )
        tokens, tops = self.tokens or [], self.top_logprobs or []
        values = self.token_logprobs or []
        return tuple(
            Logprob(_raw(token), value or 0.0, [(_raw(text), one) for text, one in (top or {}).items()])
            for token, value, top in zip_longest(tokens, values[: len(tokens)], tops[: len(tokens)])
        )


def _raw(token: str) -> bytes:
    return token.encode(errors="replace")


class _Choice(msgspec.Struct):
    delta: _Message | None = None
    message: _Message | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None
    token_ids: list[int] | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: Any = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Chunk)


class InvalidAnswer(Exception):
    """What a server says is no answer."""


class Events:
    """Server-Sent Events as they come."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []
        """Pieces of an event that is not whole."""
        self._size = 0
        """Bytes of these pieces."""
        self._tail = b""
        """The last three bytes of these pieces: an event may end with four."""
        self._done = False

    def feed(self, data: bytes) -> list[bytes]:
        """The data of those that are whole now, up to `[DONE]`. Raises ValueError."""
        if self._done:
            return []
        if not self._rest and data[:6] == b"data: " and data.find(b"\n") == len(data) - 2 and data[-1:] == b"\n":
            event = data[6:-2]  # one event, as most come
            if event[:1] == b"{":
                return [event]
        end = self._tail + data
        if b"\n\n" not in end and b"\n\r\n" not in end:  # joined once it is whole: it may arrive in many pieces
            self._keep(data)
            return []
        data = b"".join([*self._rest, data])
        self._rest, self._size, self._tail = [], 0, b""
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
        *whole, rest = data.split(b"\n\n")
        self._keep(rest)
        told: list[bytes] = []
        for event in whole:
            for line in event.split(b"\n") if b"\n" in event else (event,):
                if line[:5] == b"data:":
                    content = line[5:].strip()
                    if content == b"[DONE]":
                        self._done = True
                        return told
                    told.append(content)
        return told

    def _keep(self, rest: bytes) -> None:
        """Keep a piece of an event that is not whole. Raises ValueError if the event is too long."""
        if rest:
            self._rest.append(rest)
            self._size += len(rest)
            self._tail = (self._tail + rest)[-3:]
        if self._size > _LONGEST_EVENT:
            raise ValueError("an event without end")


Said = tuple[Piece, Sequence[int], str | None]
"""A piece, the tokens that it is, if they were told, and why the answer ended, on the last one."""


class Answer:
    """One answer as it comes."""

    def __init__(self, *, streamed: bool) -> None:
        """`streamed`: as events; else it is given in one piece."""
        self.streamed = streamed
        self.usage: Usage | None = None
        """As the server says, if what it says can be."""
        self.ended = False
        self._events = Events()
        self._calls = 0
        """Calls whose text has begun."""
        self._size = 0
        """Bytes that have arrived."""

    def feed(self, data: bytes) -> Iterator[Said]:
        """What has come, as it came.

        Raises Nonsense, or ContextRefused if it says that something is wrong with the request.
        """
        self._size += len(data)
        if self._size > LONGEST_ANSWER and not self.ended:
            raise InvalidAnswer(f"the answer has more than {LONGEST_ANSWER} bytes")
        try:
            for event in self._events.feed(data) if self.streamed else [data]:
                said = self._push(event)
                if said is not None:
                    yield said
        except (ValueError, RecursionError) as error:  # msgspec's errors and those of decoding are ValueErrors
            raise InvalidAnswer(f"{error}") from error

    def _push(self, event: bytes) -> Said | None:
        chunk = _decoder.decode(event)
        if chunk.error is not None:
            raise _error(chunk.error)
        if chunk.usage is not None:
            self.usage = _usage(chunk.usage) or self.usage
        if not chunk.choices:
            return None
        choice = chunk.choices[0]
        said = choice.delta or choice.message
        if said is None:
            text, reasoning = choice.text or "", ""
        else:
            text, reasoning = said.content or "", said.reasoning_content or said.reasoning or ""
            if said.tool_calls:
                text += self._called(said.tool_calls)
        finish = None
        if choice.finish_reason:
            if choice.finish_reason == "abort":
                raise ValueError("it has given the answer up")
            finish = choice.finish_reason if choice.finish_reason in _FINISHES else "stop"
            if self._calls and finish != "length":  # cut off, a call has no end
                text += "}" + _CALL_ENDS
            self.ended = True
        entries = () if choice.logprobs is None else choice.logprobs.entries
        ids = choice.token_ids or ()
        if ids and not (min(ids) >= 0 and max(ids) < 2**31):
            raise ValueError("a token's number is out of range")
        if text or reasoning or ids or entries or finish is not None:
            tokens = len(ids) or len(entries) or int(bool(text or reasoning))
            return Piece(text, tokens, entries, reasoning), ids, finish
        return None

    def _called(self, calls: Sequence[_Call]) -> str:
        text = ""
        for call in calls:
            if call.index >= self._calls:
                text += "}" + _CALL_ENDS + "\n" if self._calls else ""
                self._calls = call.index + 1
                text += f'{_CALL_BEGINS}{{"name": {json.dumps(call.function.name or "")}, "arguments": '
            text += call.function.arguments or ""
        return text


_FINISHES = ("stop", "length", "content_filter")
"""Reasons for an answer's end that clients know; servers have others for "stop"."""


def _error(error: Any) -> Exception:
    """What a server says in the middle of a stream."""
    message = str(error.get("message", error)) if isinstance(error, dict) else str(error)
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, int) and 400 <= code < 500 and code not in (408, 409, 425, 429):
        return refused(message, message)
    return ValueError(message)


def refused(message: str, told: str, code: str = "") -> ContextRefused:
    """What a server's refusal means, from its words and perhaps its code. `told`: what to say of any other."""
    if code in _TOO_LONG_CODES or _TOO_LONG.search(message):
        return ContextRefused("context_length_exceeded", message)
    return ContextRefused("engine_refused", told)


def _usage(told: Any) -> Usage | None:
    """Tokens; None if the figures cannot be."""
    if not isinstance(told, dict):
        return None
    details = told.get("prompt_tokens_details")
    prompt: Any = told.get("prompt_tokens")
    completion: Any = told.get("completion_tokens") or 0
    cached: Any = (details.get("cached_tokens") if isinstance(details, dict) else None) or 0
    details = told.get("completion_tokens_details")
    reasoning: Any = (details.get("reasoning_tokens") if isinstance(details, dict) else None) or 0
    for figure in (prompt, cached, completion, reasoning):
        if type(figure) is not int or not 0 <= figure < 2**31:
            return None
    return Usage(prompt, cached, completion, min(reasoning, completion)) if cached <= prompt else None
