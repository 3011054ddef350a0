"""Calls as an answer: whole, as a stream, or at once as references to what is still to be made."""

import asyncio
import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from itertools import chain, repeat
from typing import Any, Protocol

import msgspec
from aiohttp import web

from compat.openai import CompletionTokensDetails, CompletionUsage, PromptTokensDetails, SemanticInfo
from gateway.api.semantic import Scope, describe_call
from gateway.api.services import SERVICES
from gateway.api.streaming import Streaming
from gateway.errors import FailedCall
from gateway.graph.call import Call, CallSpec, CallState, Usage
from gateway.graph.errors import Failure
from gateway.graph.variable import Piece
from gateway.http.bodies import json_response
from gateway.http.errors import as_request_error, error_body
from gateway.http.sse import EventStream, unnamed
from gateway.scheduler import Scheduler

_STATUS_SECONDS = 5.0
"""So long a stream waits before its status line, so that an early failure can have a status of its own."""

Extra = SemanticInfo | msgspec.UnsetType
"""The `semantic` object of an answer, or nothing."""
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


def usage_of(usages: Sequence[Usage]) -> CompletionUsage:
    """Tokens of some calls, summed."""
    prompt = cached = completion = accepted = rejected = 0
    for usage in usages:
        prompt += usage.prompt
        cached += usage.cached
        completion += usage.completion
        accepted += usage.accepted
        rejected += usage.rejected
    predicted = CompletionTokensDetails(accepted, rejected) if accepted or rejected else msgspec.UNSET
    return CompletionUsage(prompt, completion, prompt + completion, PromptTokensDetails(cached), predicted)


class _Answer:
    """How a request's calls are told to its client."""

    def __init__(self, body: Asked, scope: Scope, shape: Shape, calls: Sequence[Call], each: int) -> None:
        """`each`: how many of the calls, one after another, have one prompt, which counts once."""
        self._scope = scope
        self._shape = shape
        self._calls = calls
        self._each = each
        self._wants_usage = body.wants_usage
        self._opened: set[int] = set()
        """Of streamed answers, those that have begun."""
        self._ended = 0

    @property
    def _extra(self) -> Extra:
        if not self._scope.named:
            return msgspec.UNSET
        first, *others = (describe_call(self._scope.session, call) for call in self._calls)
        if others:
            first["others"] = others
        return first

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

    async def whole(self, keep: int) -> web.Response:
        """The texts, once they are there; of each prompt's answers the `keep` likeliest."""
        for call in self._calls:
            await call.output.final()
        for call in self._calls:
            _check(call)
        self._shape.model = self._calls[0].model or self._shape.model  # a fallback says its own name
        kept = self._calls if keep == self._each else self._likeliest(keep)
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
        """A complete ordinary answer whose contents are the references to the ones still to be made."""
        choices = [
            self._shape.choice(index, call, _reference(call), "stop", ()) for index, call in enumerate(self._calls)
        ]
        return json_response(self._shape.whole(choices, self._usage, self._extra))

    async def stream_reference(self, request: web.Request) -> web.StreamResponse:
        """The same as a stream."""
        stream, shape = EventStream(request), self._shape
        parts: list[Any] = []
        for index, call in enumerate(self._calls):
            parts += [shape.opening(index), shape.piece(index, call, _reference(call), ())]
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
        """The texts as they are made."""
        stream = EventStream(request)
        streaming = Streaming(stream, self, _STATUS_SECONDS)
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
        _check(call)
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


def _check(call: Call) -> None:
    """Raises FailedCall unless the call is done."""
    if call.state is not CallState.DONE:
        raise FailedCall(call.failure or Failure("internal_error", f"the call is {call.state}"))


def _reference(call: Call) -> str:
    return f"<<{call.output.name}>>"


def _likelihood(call: Call) -> float:
    entries: list[Any] = [entry for piece in call.output.pieces for entry in piece.logprobs]
    logprobs = [entry.logprob for entry in entries]
    return sum(logprobs) / len(logprobs) if logprobs else -math.inf


async def respond(
    request: web.Request,
    body: Asked,
    scope: Scope,
    specs: Sequence[CallSpec],
    shape: Shape,
    each: int = 1,
    keep: int = 1,
) -> web.StreamResponse:
    """Joins the calls to their session's graph, starts them and answers. `each` of them, one after another, have one
    prompt; `keep` of these are told."""
    scheduler = request.app[SERVICES].scheduler
    addition = scope.session.add_all(specs)
    calls = addition.calls
    answer = _Answer(body, scope, shape, calls, each)
    if specs[0].deferred:
        await scheduler.start(scope.session, addition, promised=True)
        return await answer.stream_reference(request) if body.streamed else answer.reference()
    for call in calls:
        scheduler.reader_came(call.output)
    try:
        if scope.named or body.streamed or len(calls) > 1:
            await scheduler.start(scope.session, addition)
        else:
            await scheduler.perform(calls[0])
        return await (answer.stream(request) if body.streamed else answer.whole(keep))
    finally:  # in the next turn: the answer is sent first
        asyncio.get_running_loop().call_soon(_left, scheduler, scope, calls)


def _left(scheduler: Scheduler, scope: Scope, calls: Sequence[Call]) -> None:
    """The client has its answer, or has gone."""
    for call in calls:
        scheduler.reader_left(call.output)
    if not scope.named:  # nobody else can ask for anything of it
        scope.session.dissolve()
