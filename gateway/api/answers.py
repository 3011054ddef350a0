"""Calls as an answer: whole, as a stream, or at once as references to what is still to be made."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec
from aiohttp import web

from compat.openai import CompletionTokensDetails, CompletionUsage, PromptTokensDetails, SemanticInfo
from gateway.api.semantic.extension import Scope, describe_call
from gateway.api.services import SERVICES
from gateway.errors import FailedCall
from gateway.graph.call import Call, CallSpec, CallState, Usage
from gateway.graph.errors import Failure
from gateway.scheduler import Scheduler

STATUS_SECONDS = 5.0
"""So long a stream waits before its status line, so that an early failure can have a status of its own."""

Extra = SemanticInfo | msgspec.UnsetType
"""The `semantic` object of an answer, or nothing."""


class Answer(Protocol):
    """How a request's calls are told to its client, in an endpoint's own wire shapes."""

    async def whole(self) -> web.Response:
        """The texts, once they are there. Raises FailedCall."""

    def reference(self) -> web.Response:
        """A complete ordinary answer whose texts are the references to the ones still to be made."""

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """The texts as they are made. Raises FailedCall, unless something was told already."""

    async def stream_reference(self, request: web.Request) -> web.StreamResponse:
        """The same as `reference`, as a stream."""


async def respond(
    request: web.Request,
    scope: Scope,
    specs: Sequence[CallSpec],
    tell: Callable[[Sequence[Call]], Answer],
    streamed: bool,
) -> web.StreamResponse:
    """Joins the calls to their session's graph, starts them and answers as `tell` has it."""
    scheduler = request.app[SERVICES].scheduler
    addition = scope.session.add_all(specs)
    calls = addition.calls
    answer = tell(calls)
    if specs[0].deferred:
        await scheduler.start(scope.session, addition, promised=True)
        return await answer.stream_reference(request) if streamed else answer.reference()
    for call in calls:
        scheduler.subscribe(call.output)
    try:
        if scope.named or streamed or len(calls) > 1:
            await scheduler.start(scope.session, addition)
        else:
            await scheduler.perform(calls[0])
        return await (answer.stream(request) if streamed else answer.whole())
    finally:  # in the next turn: the answer is sent first
        asyncio.get_running_loop().call_soon(_left, scheduler, scope, calls)


def _left(scheduler: Scheduler, scope: Scope, calls: Sequence[Call]) -> None:
    """The client has its answer, or has gone."""
    for call in calls:
        scheduler.unsubscribe(call.output)
    if not scope.named:  # nobody else can ask for anything of it
        scope.session.dissolve()


def usage_of(usages: Sequence[Usage]) -> CompletionUsage:
    """Tokens of some calls, summed."""
    prompt = cached = completion = accepted = rejected = reasoning = 0
    for usage in usages:
        prompt += usage.prompt
        cached += usage.cached
        completion += usage.completion
        accepted += usage.accepted
        rejected += usage.rejected
        reasoning += usage.reasoning
    told = accepted or rejected or reasoning
    details = CompletionTokensDetails(accepted, rejected, reasoning) if told else msgspec.UNSET
    return CompletionUsage(prompt, completion, prompt + completion, PromptTokensDetails(cached), details)


def extra_of(scope: Scope, calls: Sequence[Call]) -> Extra:
    """What an answer says of its calls, if their session has a name."""
    if not scope.named:
        return msgspec.UNSET
    first, *others = (describe_call(scope.session, call) for call in calls)
    if others:
        first["others"] = others
    return first


def reference_to(call: Call) -> str:
    """What a deferred answer says."""
    return f"<<{call.output.name}>>"


def check_done(call: Call) -> None:
    """Raises FailedCall unless the call is done."""
    if call.state is not CallState.DONE:
        raise FailedCall(call.failure or Failure("internal_error", f"the call is {call.state}"))
