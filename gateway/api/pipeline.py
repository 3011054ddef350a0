"""The way of a request that runs calls, from its body to its answer.

    1. `http.json_body.read_json`   parse the body and check it against its schema
    2. `admit`                      find the model and the session, and check the limits on unfinished calls
    3. `build_spec`                 build the call: prompt, sampling parameters and outputs
    4. `respond`                    submit the call, subscribe the client, and answer

Chat completions, completions and responses take all steps. A graph builds its calls with step 3 and submits them
together. Each endpoint brings a `SpecBuilder`, which reads its requests, and a `Serializer`, which writes its answers.
"""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, TypeVar

from aiohttp import web

from compat.openai import Semantic
from gateway.api.program_tracker import RequestFacts
from gateway.api.sampling import with_seed_offset
from gateway.api.semantic.extension import COST_HEADER, Scope, scope_of
from gateway.api.serializers.base import Serializer, check_done
from gateway.api.services import SERVICES, Services
from gateway.api.stream_writer import StreamWriter
from gateway.api.subscription import subscribed
from gateway.errors import FailedCall, RequestError
from gateway.graph.call import Call, CallSpec, Rendering
from gateway.graph.trace_context import parse_traceparent
from gateway.http.json_body import json_response
from gateway.http.middleware.auth import TENANT
from gateway.http.query_params import parse_bool
from gateway.http.sse import EventStream
from gateway.prompts.served_models import ServedModel
from gateway.runtime.executors import offload

_LONG_CHARACTERS = 4_000
"""Length of a request, in characters, from which its prompt is built in a thread."""
_LONG_PASSTHROUGH_CHARACTERS = 400_000
"""The same for models whose prompts are not tokenised here."""
_Result = TypeVar("_Result")


@dataclass(slots=True)
class Target:
    """The target of a request: its model, the models that may answer instead, and its session."""

    request: web.Request
    services: Services
    model: ServedModel
    fallbacks: Sequence[ServedModel]
    scope: Scope


class SpecBuilder(Protocol):
    """Reader of an endpoint's request: builds the call that it asks for."""

    def build(self, model: ServedModel) -> CallSpec:
        """Return the call with the prompt for this model. Raises RequestError and GraphError; changes nothing."""


async def admit(request: web.Request, model: str, semantic: Semantic | None) -> Target:
    """Find the model and the session of a request, and admit it. Raises RequestError, GraphError and Overloaded."""
    target = await resolve(request, model, semantic)
    check_admission(target)
    return target


async def resolve(request: web.Request, model: str, semantic: Semantic | None) -> Target:
    """Find the model and the session of a request. Raises RequestError and GraphError if one does not exist or the
    request may not use it."""
    services = request.app[SERVICES]
    models = services.models_of(request[TENANT])
    served = await models.get(model)
    scope = await scope_of(request, semantic)
    return Target(request, services, served, models.fallbacks_of(served), scope)


def check_admission(target: Target) -> None:
    """Raise Overloaded or Stopping if the request may not start calls now."""
    session = target.scope.session
    target.services.scheduler.admit(session.tenant, continues=bool(session.calls))


async def build_spec(
    builder: SpecBuilder, model: ServedModel, fallbacks: Sequence[ServedModel], characters: int
) -> CallSpec:
    """Build a call, in a thread if that takes long. `characters`: length of the request.

    Raises RequestError and GraphError; changes nothing.
    """
    if characters < _LONG_CHARACTERS:  # most are: a graph builds thousands
        return with_fallbacks(builder, model, fallbacks)
    return await offload_if_long(lambda: with_fallbacks(builder, model, fallbacks), characters, model, *fallbacks)


async def offload_if_long(build: Callable[[], _Result], characters: int, *models: ServedModel) -> _Result:
    """Return the result of `build`. Call it in a thread if the request, with so many characters, takes long to render
    and tokenise for the models."""
    if characters < _LONG_CHARACTERS:
        return build()
    passthrough = all(model.is_passthrough for model in models)
    long = _LONG_PASSTHROUGH_CHARACTERS if passthrough else _LONG_CHARACTERS
    return build() if characters < long else await offload(build, characters)


def with_fallbacks(builder: SpecBuilder, model: ServedModel, fallbacks: Sequence[ServedModel]) -> CallSpec:
    """Return the call with its prompt for the model, and for each fallback.

    A fallback for which the prompt cannot be built is left out. All are left out if the request names tokens by number.
    """
    spec = builder.build(model)
    if not fallbacks:
        return spec
    samplings = [slot.sampling for slot in spec.slots]
    if any(sampling.logit_bias or sampling.stop_token_ids or sampling.logprobs for sampling in samplings):
        return spec
    renderings = []
    for fallback in fallbacks:
        with suppress(RequestError):
            renderings.append(Rendering(fallback.id, builder.build(fallback).segments))
    return dataclasses.replace(spec, fallbacks=tuple(renderings))


def repeat(spec: CallSpec, count: int) -> list[CallSpec]:
    """Return `count` calls that differ in their seeds. Only the first assigns the output that the client named.

    Raises RequestError if the call has slots, because a name is assigned once.
    """
    if count == 1:
        return [spec]
    if spec.parts is not None:
        message = "n must be 1 for a request with slots, which has one answer"
        raise RequestError(400, message, code="unsupported_with_semantic", param=spec.field_path("n"))
    specs = []
    for number in range(count):
        copy = dataclasses.replace(
            spec,
            segments=with_seed_offset(spec.segments, number),
            fallbacks=tuple(
                Rendering(fallback.model, with_seed_offset(fallback.segments, number)) for fallback in spec.fallbacks
            ),
            share=False,
        )
        specs.append(dataclasses.replace(copy, output=None, inputs={}) if number else copy)
    return specs


def join_trace(request: web.Request, services: Services, calls: Sequence[Call]) -> None:
    """Make calls parts of the trace that their request names, if there is one."""
    if services.exporter is None:
        return
    if (trace := parse_traceparent(request.headers.get("traceparent"))) is not None:
        for call in calls:
            call.trace = trace


def join_program(target: Target, calls: Sequence[Call], facts: RequestFacts | None) -> None:
    """Give the calls of a request their place in a program. `facts`: None if the gateway looks for no programs."""
    tracker = target.services.programs
    if tracker is not None and facts is not None:
        tracker.begin(calls, facts, target.request.headers, is_named=target.scope.is_named)


async def respond(
    target: Target,
    specs: Sequence[CallSpec],
    serializer: Serializer,
    *,
    streamed: bool,
    stream: EventStream | None = None,
    facts: RequestFacts | None = None,
) -> web.StreamResponse:
    """Submit the calls and answer with their texts; if they are deferred, answer immediately with references to
    their outputs. `stream`: writer of the events, if it is not that of the request. `facts`: see `join_program`.

    If the client disconnects meanwhile, calls that only it waits for are cancelled; see `gateway/api/subscription.py`.
    """
    request, scope, scheduler = target.request, target.scope, target.services.scheduler
    limits = target.services.accounts.limits_of(scope.session.tenant)
    if limits is not None and not limits.can_start():
        await limits.make_room()
    addition = scope.session.add_all(specs)
    serializer.calls = calls = addition.calls
    if COST_HEADER in request.headers and parse_bool(request.headers[COST_HEADER].lower(), COST_HEADER):
        serializer.cost_of = target.services.prices.cost_of_call
    join_trace(target.request, target.services, calls)
    join_program(target, calls, facts)
    if specs[0].deferred:
        await scheduler.start(scope.session, addition, promised=True)
        if streamed:
            stream = stream or EventStream(request)
            return await stream.end(serializer.reference_events(), done=serializer.ends_with_done)
        return json_response(serializer.reference_response())
    on_end = None if scope.is_named else scope.session.dissolve  # no other request can name this session
    outputs = [call.output for call in calls]
    with subscribed(scheduler, outputs, after_response=True, on_end=on_end):
        if scope.is_named or streamed or len(calls) > 1 or specs[0].form is not None:
            await scheduler.start(scope.session, addition)
        else:
            await scheduler.run_inline(calls[0])
        if streamed:
            stream = stream or EventStream(request, serializer.heartbeat)
            source = serializer.follow()
            if source is not None:
                return await _stream_source(stream, calls, serializer, source)
            return await _stream(stream, calls, serializer)
        for output in outputs:
            await output.wait_final()
        for call in calls:
            check_done(call)
        return json_response(await serializer.whole_response())


async def generate(target: Target, spec: CallSpec, facts: RequestFacts | None = None) -> Call:
    """Submit a call, and return it once it is done: the answer is not its text. Raises FailedCall. If the client
    disconnects meanwhile, the call is cancelled, as in `respond`."""
    scope, scheduler = target.scope, target.services.scheduler
    await target.services.accounts.make_room(scope.session.tenant)
    addition = scope.session.add_all([spec])
    (call,) = addition.calls
    join_trace(target.request, target.services, addition.calls)
    join_program(target, addition.calls, facts)
    on_end = None if scope.is_named else scope.session.dissolve
    with subscribed(scheduler, [call.output], after_response=True, on_end=on_end):
        await scheduler.start(scope.session, addition)
        await call.output.wait_final()
        check_done(call)
        return call


async def _stream(stream: EventStream, calls: Sequence[Call], serializer: Serializer) -> web.StreamResponse:
    """Write the events of the answers while they are generated. Raises FailedCall before the first event."""
    writer = StreamWriter(
        stream, serializer, serializer.opening_seconds, serializer.prepare_end, serializer.opening_events
    )
    try:
        events = await writer.run([call.session.read(call.output) for call in calls])
    except FailedCall as error:
        if not stream.has_started:
            raise
        return await stream.end(serializer.error_events(error), done=serializer.ends_with_done)
    if serializer.persists:  # the client has its text before the response is stored
        await stream.write(events)
        events = b""
    return await stream.end(events + await serializer.last_events(), done=serializer.ends_with_done)


async def _stream_source(
    stream: EventStream, calls: Sequence[Call], serializer: Serializer, source: AsyncIterator[bytes]
) -> web.StreamResponse:
    """Write the events of calls that add calls; see `Serializer.follow`."""
    waiting: list[bytes] = []
    changed = asyncio.Event()

    async def collect() -> None:
        async for events in source:
            waiting.append(events)
            changed.set()
        for call in calls:
            await call.output.wait_final()

    collecting = asyncio.create_task(collect(), name="events of an agent")
    collecting.add_done_callback(lambda _: changed.set())
    try:
        while waiting or not collecting.done():
            await stream.with_heartbeats(changed.wait, serializer.opening_seconds, serializer.opening_events)
            changed.clear()
            events = b"".join(waiting)
            waiting.clear()
            if events:
                await stream.write(events)
        collecting.result()
        for index, call in enumerate(calls):
            check_done(call)
            if (preparing := serializer.prepare_end(index)) is not None:
                await preparing
    except FailedCall as error:
        if not stream.has_started:
            raise
        return await stream.end(serializer.error_events(error), done=serializer.ends_with_done)
    finally:
        collecting.cancel()
    return await stream.end(await serializer.last_events(), done=serializer.ends_with_done)
