"""Parse the answers of upstream servers, streamed or whole: chat completions and completions.

Structured tool calls become text; see `tool_calls`."""

import re
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import msgspec

from gateway.engines.openai.tool_calls import MalformedCalls, ToolCallFragment, ToolCallWriter
from gateway.engines.protocol import ContextRefused, Logprob
from gateway.graph.variable import Piece

_LONGEST_EVENT = 4 << 20
"""Maximum size of one event, in bytes."""
LONGEST_ANSWER = 256 << 20
"""Maximum size of an answer, in bytes of JSON or of events."""
_TOO_LONG = re.compile(
    r"context (length|size|window)|maximum (context|model) len|too many tokens|prompt is too long", re.IGNORECASE
)
_TOO_LONG_CODES = ("context_length_exceeded", "exceed_context_size_error")


class ReportedUsage(NamedTuple):
    """Token counts. `cached` is a part of `prompt`, `reasoning` a part of `completion`."""

    prompt: int
    cached: int
    completion: int
    reasoning: int = 0


class _Message(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCallFragment] | None = None


class _Top(msgspec.Struct):
    token: str
    logprob: float
    raw: list[int] | None = msgspec.field(default=None, name="bytes")

    @property
    def text(self) -> bytes:
        return _to_bytes(self.token) if self.raw is None else bytes(self.raw)


class _Token(_Top):
    top_logprobs: list[_Top] | None = None


class _Logprobs(msgspec.Struct):
    # field of chats
    content: list[_Token] | None = None
    # fields of completions
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
            Logprob(
                _to_bytes(token), value or 0.0, [(_to_bytes(text), logprob) for text, logprob in (top or {}).items()]
            )
            for token, value, top in zip_longest(tokens, values[: len(tokens)], tops[: len(tokens)])
        )


def _to_bytes(token: str) -> bytes:
    return token.encode(errors="replace")


class _Choice(msgspec.Struct):
    delta: _Message | None = None
    message: _Message | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None
    token_ids: list[int] | None = None
    # the stop string or stop token that was found: vLLM's name and SGLang's
    stop_reason: Any = None
    matched_stop: Any = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: Any = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Chunk)


class InvalidAnswer(Exception):
    """The server sent something that is not an answer."""


class SseParser:
    """Incremental parser of server-sent events."""

    def __init__(self) -> None:
        self._pending: list[bytes] = []
        """Pieces of an event that is not complete."""
        self._pending_size = 0
        """Size of these pieces, in bytes."""
        self._pending_tail = b""
        """The last three bytes of these pieces: the end of an event has up to four bytes."""
        self._done = False

    def feed(self, data: bytes) -> list[bytes]:
        """Return the data of the events that are complete now, up to `[DONE]`. Raises ValueError if an event is too
        long."""
        if self._done:
            return []
        if not self._pending and data[:6] == b"data: " and data.find(b"\n") == len(data) - 2 and data[-1:] == b"\n":
            event = data[6:-2]  # fast path: exactly one event, the common case
            if event[:1] == b"{":
                return [event]
        end = self._pending_tail + data
        # joined once it is complete: an event may arrive in many pieces
        if b"\n\n" not in end and b"\n\r\n" not in end:
            self._append_pending(data)
            return []
        data = b"".join([*self._pending, data])
        self._pending, self._pending_size, self._pending_tail = [], 0, b""
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
        *whole, rest = data.split(b"\n\n")
        self._append_pending(rest)
        events: list[bytes] = []
        for event in whole:
            for line in event.split(b"\n") if b"\n" in event else (event,):
                if line[:5] == b"data:":
                    content = line[5:].strip()
                    if content == b"[DONE]":
                        self._done = True
                        return events
                    events.append(content)
        return events

    def _append_pending(self, rest: bytes) -> None:
        """Append a piece of an incomplete event. Raises ValueError if the event is too long."""
        if rest:
            self._pending.append(rest)
            self._pending_size += len(rest)
            self._pending_tail = (self._pending_tail + rest)[-3:]
        if self._pending_size > _LONGEST_EVENT:
            raise ValueError(f"an event has more than {_LONGEST_EVENT} bytes")


ParsedPiece = tuple[Piece, Sequence[int], str | None]
"""A piece, its token ids if the server reports them, and on the last piece the finish reason."""


class AnswerParser:
    """Incremental parser of one answer."""

    def __init__(self, *, is_streamed: bool, malformed: MalformedCalls = MalformedCalls.REPAIR) -> None:
        """`is_streamed`: the answer arrives as server-sent events, otherwise as one JSON document. `malformed`:
        treatment of malformed tool calls."""
        self.is_streamed = is_streamed
        self.usage: ReportedUsage | None = None
        """Token counts as reported by the server, if they are valid."""
        self.has_ended = False
        self.stop_string: str | None = None
        """Stop string that ended the answer, if the server reports it."""
        self._events = SseParser()
        self._malformed = malformed
        self._tool_calls: ToolCallWriter | None = None
        """Writer of tool calls, once there are any."""
        self._size = 0
        """Number of bytes that have arrived."""

    def feed(self, data: bytes) -> Iterator[ParsedPiece]:
        """Parse data, and yield its pieces.

        Raises InvalidAnswer; ContextRefused if the server reports an error in the request; MalformedToolCall.
        """
        self._size += len(data)
        if self._size > LONGEST_ANSWER and not self.has_ended:
            raise InvalidAnswer(f"the answer has more than {LONGEST_ANSWER} bytes")
        try:
            for event in self._events.feed(data) if self.is_streamed else [data]:
                piece = self._push(event)
                if piece is not None:
                    yield piece
        except (ValueError, RecursionError) as error:  # msgspec's errors and decoding errors are ValueErrors
            raise InvalidAnswer(f"{error}") from error

    def _push(self, event: bytes) -> ParsedPiece | None:
        chunk = _decoder.decode(event)
        if chunk.error is not None:
            raise _to_exception(chunk.error)
        if chunk.usage is not None:
            self.usage = _parse_usage(chunk.usage) or self.usage
        if not chunk.choices:
            return None
        choice = chunk.choices[0]
        message = choice.delta or choice.message
        if message is None:
            text, reasoning = choice.text or "", ""
        else:
            text = message.content or ""
            reasoning = message.reasoning_content or message.reasoning or ""
            if self._tool_calls is not None:
                text = self._tool_calls.add_text(text)
            if message.tool_calls:
                self._tool_calls = self._tool_calls or ToolCallWriter(self._malformed)
                text += self._tool_calls.add(message.tool_calls, whole=choice.delta is None)
        finish = None
        if choice.finish_reason:
            found = choice.stop_reason or choice.matched_stop
            self.stop_string = found if isinstance(found, str) else None
            if choice.finish_reason == "abort":
                raise ValueError("the server aborted the answer")
            finish = choice.finish_reason if choice.finish_reason in _FINISHES else "stop"
            if self._tool_calls is not None:
                text += self._tool_calls.finish(cut=finish == "length")
            self.has_ended = True
        entries = () if choice.logprobs is None else choice.logprobs.entries
        ids = choice.token_ids or ()
        if ids and not (min(ids) >= 0 and max(ids) < 2**31):
            raise ValueError("a token id is out of range")
        if text or reasoning or ids or entries or finish is not None:
            tokens = len(ids) or len(entries) or int(bool(text or reasoning))
            return Piece(text, tokens, entries, reasoning), ids, finish
        return None


_FINISHES = ("stop", "length", "content_filter")
"""Finish reasons that clients know. Servers have other names for "stop"."""


def _to_exception(error: Any) -> Exception:
    """Return the exception for an error that a server sends within a stream."""
    message = str(error.get("message", error)) if isinstance(error, dict) else str(error)
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, int) and 400 <= code < 500 and code not in (408, 409, 425, 429):
        return refusal_of(message, message)
    return ValueError(message)


def refusal_of(message: str, other_message: str, code: str = "") -> ContextRefused:
    """Return the exception for a request that the server has refused.

    `message`: the server's text; it is used if it says that the prompt is too long. `other_message`: text for all other
    reasons. `code`: the server's error code, if there is one.
    """
    if code in _TOO_LONG_CODES or _TOO_LONG.search(message):
        return ContextRefused("context_length_exceeded", message)
    return ContextRefused("engine_refused", other_message)


def _parse_usage(reported: Any) -> ReportedUsage | None:
    """Return the reported token counts; None if they are invalid."""
    if not isinstance(reported, dict):
        return None
    details = reported.get("prompt_tokens_details")
    prompt: Any = reported.get("prompt_tokens")
    completion: Any = reported.get("completion_tokens") or 0
    cached: Any = (details.get("cached_tokens") if isinstance(details, dict) else None) or 0
    details = reported.get("completion_tokens_details")
    reasoning: Any = (details.get("reasoning_tokens") if isinstance(details, dict) else None) or 0
    for figure in (prompt, cached, completion, reasoning):
        if type(figure) is not int or not 0 <= figure < 2**31:
            return None
    return ReportedUsage(prompt, cached, completion, min(reasoning, completion)) if cached <= prompt else None
