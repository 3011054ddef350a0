"""A call as an answer: whole, as a stream, or at once as the reference to what is still to be made."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec
from aiohttp import web

from compat.openai import CompletionUsage, PromptTokensDetails
from gateway.api.semantic import Scope, describe_call
from gateway.api.services import SERVICES
from gateway.errors import FailedCall
from gateway.graph.call import Call, CallSpec, CallState, Usage
from gateway.graph.errors import Failure
from gateway.graph.variable import Piece
from gateway.http.bodies import json_response
from gateway.http.errors import as_request_error, error_body
from gateway.http.sse import EventStream

_STATUS_SECONDS = 5.0
"""So long a stream waits before its status line, so that an early failure can have a status of its own."""

Extra = dict[str, Any] | msgspec.UnsetType
"""The `semantic` object of an answer, or nothing."""
Told = CompletionUsage | None | msgspec.UnsetType
"""What a chunk says of usage: nothing, that it comes later, or all of it."""


class Shape(Protocol):
    """An endpoint's own wire shapes for one call."""

    call: Call

    def whole(self, text: str, finish: str, pieces: Sequence[Piece], usage: CompletionUsage, extra: Extra) -> Any:
        """The answer in one piece."""

    def opening(self, usage: Told, extra: Extra) -> list[Any]:
        """What a stream begins with."""

    def piece(self, text: str, pieces: Sequence[Piece], usage: Told) -> Any | None:
        """A part of the answer; None if there is nothing in it to tell."""

    def closing(self, finish: str, usage: Told, extra: Extra) -> Any:
        """What says that the answer is whole, and why it ended."""

    def usage(self, usage: CompletionUsage, extra: Extra) -> Any:
        """The chunk behind the last, where usage was asked for."""


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
    prompt = sum(usage.prompt for usage in usages)
    completion = sum(usage.completion for usage in usages)
    cached = PromptTokensDetails(sum(usage.cached for usage in usages))
    return CompletionUsage(prompt, completion, prompt + completion, cached)


class _Answer:
    """How one call is told to its client."""

    def __init__(self, body: Asked, scope: Scope, shape: Shape) -> None:
        self._scope = scope
        self._shape = shape
        self._call = shape.call
        self._wants_usage = body.wants_usage

    @property
    def _extra(self) -> Extra:
        return describe_call(self._scope.session, self._call) if self._scope.named else msgspec.UNSET

    @property
    def _usage(self) -> CompletionUsage:
        """None so far for an answer that is only the reference."""
        return usage_of([] if self._call.spec.deferred else [self._call.usage])

    @property
    def _hidden(self) -> Told:
        return None if self._wants_usage else msgspec.UNSET

    def _last(self, finish: str) -> list[Any]:
        events = [self._shape.closing(finish, self._hidden, self._extra)]
        return [*events, self._shape.usage(self._usage, self._extra)] if self._wants_usage else events

    def _check(self) -> None:
        """Raises FailedCall unless the call is done."""
        call = self._call
        if call.state is not CallState.DONE:
            raise FailedCall(call.failure or Failure("internal_error", f"the call is {call.state}"))

    async def whole(self) -> web.Response:
        """The text, once it is there."""
        output = self._call.output
        await output.final()
        self._check()
        finish = self._call.finish_reason or "stop"
        return json_response(self._shape.whole(output.value or "", finish, output.pieces, self._usage, self._extra))

    def reference(self) -> web.Response:
        """A complete ordinary answer whose content is the reference to the one still to be made."""
        return json_response(self._shape.whole(self._named, "stop", (), self._usage, self._extra))

    @property
    def _named(self) -> str:
        return f"<<{self._call.output.name}>>"

    async def stream_reference(self, request: web.Request) -> web.StreamResponse:
        """The same as a stream."""
        stream = EventStream(request)
        piece = self._shape.piece(self._named, (), self._hidden)
        await stream.data(*self._shape.opening(self._hidden, self._extra), piece, *self._last("stop"))
        return await stream.end()

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """The text as it is made."""
        stream, shape = EventStream(request), self._shape
        opening = shape.opening(self._hidden, self._extra)
        try:
            with self._call.session.read(self._call.output) as reader:
                while pieces := await stream.patiently(reader.more, _STATUS_SECONDS):
                    chunk = shape.piece("".join([piece.text for piece in pieces]), pieces, self._hidden)
                    if chunk is not None:
                        await stream.data(*opening, chunk)
                        opening = []
            self._check()
        except FailedCall as error:
            if not stream.begun:
                raise
            await stream.data(error_body(as_request_error(error)))
            return await stream.end()
        await stream.data(*opening, *self._last(self._call.finish_reason or "stop"))
        return await stream.end()


async def respond(
    request: web.Request, body: Asked, scope: Scope, spec: CallSpec, shape_of: Callable[[Call], Shape]
) -> web.StreamResponse:
    """Joins the call to its session's graph, starts it and answers."""
    scheduler = request.app[SERVICES].scheduler
    addition = scope.session.add_all([spec])
    call = addition.calls[0]
    answer = _Answer(body, scope, shape_of(call))
    if spec.deferred:
        await scheduler.start(scope.session, addition, promised=True)
        return await answer.stream_reference(request) if body.streamed else answer.reference()
    scheduler.reader_came(call.output)
    try:
        await scheduler.start(scope.session, addition)
        return await (answer.stream(request) if body.streamed else answer.whole())
    finally:
        scheduler.reader_left(call.output)
