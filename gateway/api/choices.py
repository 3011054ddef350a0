"""Calls as OpenAI's older endpoints answer with them: `choices`, whole or in chunks."""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from itertools import chain, repeat
from typing import Any, Protocol

import msgspec
from aiohttp import web

from compat.openai import CompletionUsage
from gateway.api.answers import STATUS_SECONDS, Extra, check_done, extra_of, reference_to, usage_of
from gateway.api.semantic import Scope
from gateway.api.streaming import Streaming
from gateway.errors import FailedCall
from gateway.graph.call import Call
from gateway.graph.variable import Piece
from gateway.http.bodies import json_response
from gateway.http.errors import as_request_error, error_body
from gateway.http.sse import EventStream, unnamed

Told = CompletionUsage | None | msgspec.UnsetType
"""What a chunk says of usage: nothing, that it comes later, or all of it."""


class Shape(Protocol):
    """An endpoint's own wire shapes for one request. Each of its choices is a call.

    `model`: who answers, as the answer says.
    """

    model: str

    def choice(self, index: int, call: Call, text: str, finish: str, pieces: Sequence[Piece]) -> Any:
        """One answer in one piece."""

    def whole(self, choices: Sequence[Any], usage: CompletionUsage, extra: Extra) -> Any:
        """All of them."""

    def opening(self, index: int) -> Any | None:
        """What an answer's stream begins with, if with anything."""

    def piece(self, index: int, call: Call, text: str, pieces: Sequence[Piece]) -> Any | None:
        """A part of an answer; None if there is nothing in it to tell."""

    def closing(self, index: int, finish: str) -> Any:
        """What says that an answer is whole, and why it ended."""

    def chunk(self, choices: Sequence[Any], usage: Told, extra: Extra = msgspec.UNSET) -> Any:
        """An event with parts of answers; without any, the one that tells usage."""


class Asked(Protocol):
    """What an answer needs to know of its request."""

    @property
    def streamed(self) -> bool:
        """Whether the answer is a stream."""

    @property
    def wants_usage(self) -> bool:
        """Whether the stream tells usage."""


class Choices:
    """See `answers.Answer`. Each call is one of `choices`."""

    def __init__(
        self, body: Asked, scope: Scope, shape: Shape, calls: Sequence[Call], each: int = 1, keep: int = 1
    ) -> None:
        """`each` of the calls, one after another, have one prompt, which counts once; the `keep` likeliest of these are
        told."""
        self._scope = scope
        self._shape = shape
        self._calls = calls
        self._each = each
        self._keep = keep
        self._wants_usage = body.wants_usage
        self._opened: set[int] = set()
        """Of streamed answers, those that have begun."""
        self._ended = 0

    @property
    def _extra(self) -> Extra:
        return extra_of(self._scope, self._calls)

    @property
    def _usage(self) -> CompletionUsage:
        """None so far for answers that are only references."""
        if self._calls[0].spec.deferred:
            return usage_of([])
        usages = [call.usage for call in self._calls]
        if self._each == 1:
            return usage_of(usages)
        first = {id(usage) for usage in usages[:: self._each]}
        return usage_of([one if id(one) in first else dataclasses.replace(one, prompt=0, cached=0) for one in usages])

    @property
    def _hidden(self) -> Told:
        return None if self._wants_usage else msgspec.UNSET

    async def whole(self) -> web.Response:
        """See `Answer`."""
        for call in self._calls:
            await call.output.final()
        for call in self._calls:
            check_done(call)
        self._shape.model = self._calls[0].model or self._shape.model  # a fallback says its own name
        kept = self._calls if self._keep == self._each else self._likeliest(self._keep)
        choices = [
            self._shape.choice(index, call, call.output.value or "", call.finish_reason or "stop", call.output.pieces)
            for index, call in enumerate(kept)
        ]
        return json_response(self._shape.whole(choices, self._usage, self._extra))

    def _likeliest(self, keep: int) -> list[Call]:
        """By the mean log probability of their tokens."""
        kept: list[Call] = []
        for at in range(0, len(self._calls), self._each):
            kept += sorted(self._calls[at : at + self._each], key=_likelihood, reverse=True)[:keep]
        return kept

    def reference(self) -> web.Response:
        """See `Answer`."""
        choices = [
            self._shape.choice(index, call, reference_to(call), "stop", ()) for index, call in enumerate(self._calls)
        ]
        return json_response(self._shape.whole(choices, self._usage, self._extra))

    async def stream_reference(self, request: web.Request) -> web.StreamResponse:
        """See `Answer`."""
        stream, shape = EventStream(request), self._shape
        parts: list[Any] = []
        for index, call in enumerate(self._calls):
            parts += [shape.opening(index), shape.piece(index, call, reference_to(call), ())]
        extras = chain([self._extra], repeat(msgspec.UNSET))
        told = [part for part in parts if part is not None]
        chunks = [shape.chunk([part], self._hidden, extra) for part, extra in zip(told, extras, strict=False)]
        closings = [shape.closing(index, "stop") for index in range(len(self._calls))]
        return await stream.end(unnamed(*chunks, *self._last(closings)))

    def _last(self, closings: Sequence[Any]) -> list[Any]:
        *before, last = closings
        events = [self._shape.chunk([closing], self._hidden) for closing in before]
        events.append(self._shape.chunk([last], self._hidden, self._extra))
        return [*events, self._shape.chunk([], self._usage, self._extra)] if self._wants_usage else events

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """See `Answer`."""
        stream = EventStream(request)
        streaming = Streaming(stream, self, STATUS_SECONDS)
        try:
            last = await streaming.run([partial(call.session.read, call.output) for call in self._calls])
        except FailedCall as error:
            if not stream.begun:
                raise
            return await stream.end(unnamed(error_body(as_request_error(error))))
        return await stream.end(last)

    def piece(self, index: int, pieces: Sequence[Piece]) -> bytes:
        """See `Teller.piece`."""
        call, shape = self._calls[index], self._shape
        shape.model = call.model or shape.model
        part = shape.piece(index, call, "".join([piece.text for piece in pieces]), pieces)
        return b"" if part is None else unnamed(*self._opening(index), shape.chunk([part], self._hidden))

    def end(self, index: int) -> bytes:
        """See `Teller.end`. Raises FailedCall."""
        call, shape = self._calls[index], self._shape
        shape.model = call.model or shape.model
        check_done(call)
        self._ended += 1
        closing = shape.closing(index, call.finish_reason or "stop")
        whole = self._ended == len(self._calls)
        last = self._last([closing]) if whole else [shape.chunk([closing], self._hidden)]
        return unnamed(*self._opening(index), *last)

    def _opening(self, index: int) -> list[Any]:
        if index in self._opened:
            return []
        part = self._shape.opening(index)
        extra = msgspec.UNSET if self._opened else self._extra
        self._opened.add(index)
        return [] if part is None else [self._shape.chunk([part], self._hidden, extra)]


def _likelihood(call: Call) -> float:
    entries: list[Any] = [entry for piece in call.output.pieces for entry in piece.logprobs]
    logprobs = [entry.logprob for entry in entries]
    return sum(logprobs) / len(logprobs) if logprobs else -math.inf
