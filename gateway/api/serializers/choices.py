"""Calls as OpenAI's older endpoints answer with them: `choices`, whole or in chunks."""

import dataclasses
import math
from collections.abc import Awaitable, Sequence
from functools import partial
from itertools import chain, repeat
from operator import neg
from typing import Any, Protocol

import msgspec
from aiohttp import web

from compat.openai import CompletionUsage
from gateway.api.answers import STATUS_SECONDS, Extra, check_done, extra_of, reference_to, usage_of
from gateway.api.schema_checks import AnswerChecks
from gateway.api.semantic.extension import Scope
from gateway.api.stream_writer import StreamWriter
from gateway.errors import FailedCall
from gateway.graph.call import Call, Usage
from gateway.graph.variable import Piece
from gateway.http.json_body import json_response
from gateway.http.middleware.errors import as_request_error, error_body
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

    def piece(self, index: int, call: Call, text: str, pieces: Sequence[Piece]) -> Sequence[Any]:
        """Return parts of an answer, one for each chunk."""

    def closing(self, index: int, finish: str) -> Sequence[Any]:
        """Return the last parts of an answer; the very last one has the finish reason."""

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

    @property
    def wants_continuous_usage(self) -> bool:
        """Whether each chunk of the stream has the usage so far."""


class Choices:
    """See `answers.Answer`. Each call is one of `choices`."""

    def __init__(
        self,
        body: Asked,
        scope: Scope,
        shape: Shape,
        calls: Sequence[Call],
        each: int = 1,
        keep: int = 1,
        checks: AnswerChecks | None = None,
    ) -> None:
        """`each` of the calls, one after another, have one prompt, which counts once; the `keep` likeliest of these are
        told. `checks`: of the answers against their schema, if they are to be checked."""
        self._scope = scope
        self._shape = shape
        self._calls = calls
        self._each = each
        self._keep = keep
        self._checks = checks
        self._wants_usage = body.wants_usage
        self._continuous_usage = body.wants_continuous_usage
        self._counted: dict[int, tuple[int, ...]] = {}
        """Usage of each call, by index, at its latest chunk."""
        self._so_far: tuple[int, ...] = (0,) * 6
        """Sum of `_counted` over all calls."""
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
    def _later_usage(self) -> Told:
        """Usage field of chunks before the last one: null if the last chunk has usage, otherwise absent."""
        return None if self._wants_usage else msgspec.UNSET

    def _usage_with(self, index: int) -> Told:
        """Return the usage field of a chunk with parts of a call's answer: the usage so far, if the client wants it.

        It takes constant time. A sum over all calls for each chunk would be quadratic in the number of calls.
        """
        if not self._continuous_usage:
            return self._later_usage
        usage = self._calls[index].usage
        if index % self._each:
            usage = dataclasses.replace(usage, prompt=0, cached=0)
        new = (usage.prompt, usage.cached, usage.completion, usage.accepted, usage.rejected, usage.reasoning)
        old = self._counted.get(index, (0,) * len(new))
        self._counted[index] = new
        self._so_far = tuple(map(sum, zip(self._so_far, new, map(neg, old), strict=True)))
        prompt, cached, completion, accepted, rejected, reasoning = self._so_far
        return usage_of([Usage(prompt, cached, completion, {}, accepted, rejected, reasoning)])

    async def whole(self) -> web.Response:
        """See `Answer`."""
        for call in self._calls:
            await call.output.wait_final()
        for call in self._calls:
            check_done(call)
        self._shape.model = self._calls[0].model or self._shape.model  # a fallback says its own name
        kept = self._calls if self._keep == self._each else self._likeliest(self._keep)
        choices = [
            self._shape.choice(index, call, call.output.value or "", call.finish_reason or "stop", call.output.pieces)
            for index, call in enumerate(kept)
        ]
        if self._checks is not None:
            for index, call in enumerate(kept):
                if (later := self._checks.begin(index, call)) is not None:
                    await later
                choices[index] = self._checked(index, choices[index])
        return json_response(self._shape.whole(choices, self._usage, self._extra))

    def _checked(self, index: int, choice: Any) -> Any:
        """Return the last part of an answer, with the violation of its schema if there is one."""
        violation = None if self._checks is None else self._checks.violation(index)
        return choice if violation is None else msgspec.structs.replace(choice, schema_violation=violation)

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
            parts += [shape.opening(index), *shape.piece(index, call, reference_to(call), ())]
        extras = chain([self._extra], repeat(msgspec.UNSET))
        told = [part for part in parts if part is not None]
        chunks = [shape.chunk([part], self._later_usage, extra) for part, extra in zip(told, extras, strict=False)]
        closings = [part for index in range(len(self._calls)) for part in shape.closing(index, "stop")]
        return await stream.end(unnamed(*chunks, *self._last(closings, self._later_usage)))

    def _last(self, closings: Sequence[Any], usage: Told) -> list[Any]:
        *before, last = closings
        events = [self._shape.chunk([closing], usage) for closing in before]
        events.append(self._shape.chunk([last], usage, self._extra))
        return [*events, self._shape.chunk([], self._usage, self._extra)] if self._wants_usage else events

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """See `Answer`."""
        stream = EventStream(request)
        streaming = StreamWriter(stream, self, STATUS_SECONDS, self._check)
        try:
            last = await streaming.run([partial(call.session.read, call.output) for call in self._calls])
        except FailedCall as error:
            if not stream.begun:
                raise
            return await stream.end(unnamed(error_body(as_request_error(error))))
        return await stream.end(last)

    def _check(self, index: int) -> Awaitable[None] | None:
        """Check a streamed answer before its end is written; see `StreamWriter`."""
        return None if self._checks is None else self._checks.begin(index, self._calls[index])

    def piece(self, index: int, pieces: Sequence[Piece]) -> bytes:
        """See `Teller.piece`."""
        call, shape = self._calls[index], self._shape
        shape.model = call.model or shape.model
        parts = shape.piece(index, call, "".join([piece.text for piece in pieces]), pieces)
        if not parts:
            return b""
        usage = self._usage_with(index)
        return unnamed(*self._opening(index, usage), *[shape.chunk([part], usage) for part in parts])

    def end(self, index: int) -> bytes:
        """See `Teller.end`. Raises FailedCall."""
        call, shape = self._calls[index], self._shape
        shape.model = call.model or shape.model
        check_done(call)
        self._ended += 1
        *before, last_part = shape.closing(index, call.finish_reason or "stop")
        closings = [*before, self._checked(index, last_part)]
        whole = self._ended == len(self._calls)
        usage = self._usage_with(index)
        last = self._last(closings, usage) if whole else [shape.chunk([part], usage) for part in closings]
        return unnamed(*self._opening(index, usage), *last)

    def _opening(self, index: int, usage: Told) -> list[Any]:
        if index in self._opened:
            return []
        part = self._shape.opening(index)
        extra = msgspec.UNSET if self._opened else self._extra
        self._opened.add(index)
        return [] if part is None else [self._shape.chunk([part], usage, extra)]


def _likelihood(call: Call) -> float:
    entries: list[Any] = [entry for piece in call.output.pieces for entry in piece.logprobs]
    logprobs = [entry.logprob for entry in entries]
    return sum(logprobs) / len(logprobs) if logprobs else -math.inf
