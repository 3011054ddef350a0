"""Set, declare, read and wait for the variables of a session."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from aiohttp import web

from compat.openai import VariableList, VariableObject, VariableRequest
from gateway.api.semantic.extension import describe_variable, text_of, variable_of
from gateway.api.semantic.sessions import session_of
from gateway.api.services import SERVICES
from gateway.api.stream_writer import StreamWriter
from gateway.api.subscription import subscribed
from gateway.errors import RequestError, field_path
from gateway.graph.call import Objective
from gateway.graph.references import Reference, parse
from gateway.graph.segments import Input
from gateway.graph.session import Session, VariableSpec
from gateway.graph.variable import Piece, ProducerRestarted, Variable
from gateway.http.json_body import json_response, read_json
from gateway.http.json_stream import json_list, stream_json
from gateway.http.openapi import EVENTS, operation
from gateway.http.query_params import bool_param, choice_param
from gateway.http.sse import EventStream, named_event

routes = web.RouteTableDef()


@routes.put("/v1/sessions/{id}/variables/{name}")
@operation(VariableObject, body=VariableRequest, errors=(404, 409, 410, 503))
async def put(request: web.Request) -> web.Response:
    """Set a variable, derive it from others with a template, or declare it with a null value.

    A name is assigned once.
    """
    session, name = session_of(request), request.match_info["name"]
    body = await read_json(request, VariableRequest)
    addition = session.add_all([], [variable_spec(body, name, "")])
    await request.app[SERVICES].scheduler.start(session, addition, promised=True)
    return json_response(describe_variable(session.variable(name)))


def variable_spec(body: VariableRequest, name: str, where: str) -> VariableSpec:
    """Return the variable that a request defines. `where`: its path in a larger request."""
    if "template" in body.model_fields_set:
        place = field_path(where, "template")
        parts = [Input(piece, place) if isinstance(piece, Reference) else piece for piece in parse(body.template)]
        return VariableSpec(name, template=parts, where=where or "name")
    return VariableSpec(name, None if body.value is None else text_of(body.value), where=where or "name")


@routes.delete("/v1/sessions/{id}/variables/{name}")
@operation(VariableObject, errors=(404, 410, 503))
async def delete(request: web.Request) -> web.Response:
    """Delete a variable. Its producer is cancelled if no other call or client needs it."""
    session, name = session_of(request), request.match_info["name"]
    variable_of(session, name)
    variable = session.delete(name)
    request.app[SERVICES].scheduler.release(variable)
    await session.event_log.flush()
    return json_response(describe_variable(variable))


@routes.get("/v1/sessions/{id}/variables")
@operation(VariableList, errors=(404, 410, 503))
async def list_variables(request: web.Request) -> web.StreamResponse:
    """List the variables of the session."""
    variables = list(session_of(request).variables.values())
    return await stream_json(request, _list_pieces(map(describe_variable, variables)))


def _list_pieces(items: Iterable[VariableObject]) -> Iterator[bytes]:
    yield b'{"object":"list",'
    yield from json_list("data", items)
    yield b"}"


@routes.get("/v1/sessions/{id}/variables/{name}")
@operation(
    VariableObject,
    others={EVENTS: None},
    query={
        "wait": {"type": "boolean"},
        "timeout": {"type": "number", "minimum": 0},
        "objective": {"type": "string", "enum": ["latency", "throughput"]},
        "observe": {"type": "boolean"},
    },
    errors=(400, 404, 410, 429, 503, 504),
)
async def get(request: web.Request) -> web.StreamResponse:
    """Return a variable, or stream its value while it grows.

    With `wait=true`, wait until the variable is ready, failed or cancelled. With `observe=true`, stream without being a
    subscriber: the stream changes no priority and keeps no call running.
    """
    session = session_of(request)
    variable = variable_of(session, request.match_info["name"])
    observes = bool_param(request, "observe")
    if "text/event-stream" in request.headers.get("Accept", ""):
        return await (_observe if observes else _stream)(request, session, variable)
    if observes:
        message = "observe needs the header Accept: text/event-stream"
        raise RequestError(400, message, code="unsupported_value", param="observe")
    if bool_param(request, "wait") and not variable.state.is_final:
        await _wait(request, session, variable)
    return json_response(describe_variable(variable))


@dataclass(frozen=True)
class VariableSerializer:
    """Serializer of one growing variable into events; see `EventSerializer`."""

    variable: Variable

    def piece_events(self, index: int, pieces: Sequence[Piece]) -> bytes:
        """Return the event for new text."""
        text = "".join([piece.text for piece in pieces])
        return named_event("delta", {"text": text}) if text else b""

    def end_events(self, index: int) -> bytes:
        """Return the event of the final state."""
        return named_event(self.variable.state, describe_variable(self.variable))


async def _stream(request: web.Request, session: Session, variable: Variable) -> web.StreamResponse:
    """Stream the value from its beginning, then the variable's final state."""
    stream, objective = EventStream(request), _objective(request)
    if stream.is_empty:
        return await stream.end(done=False)
    with subscribed(request.app[SERVICES].scheduler, [variable], objective, session=session):
        last = await StreamWriter(stream, VariableSerializer(variable)).run([session.read(variable)])
        return await stream.end(last, done=False)


async def _observe(request: web.Request, session: Session, variable: Variable) -> web.StreamResponse:
    """Stream the value from its beginning, without a subscription. An event `restart` takes all text back, because the
    producer began again."""
    stream = EventStream(request)
    with subscribed(request.app[SERVICES].scheduler, session=session):
        while True:
            try:
                last = await StreamWriter(stream, VariableSerializer(variable)).run([variable.read()])
            except ProducerRestarted:
                await stream.write(named_event("restart", {}))
            else:
                return await stream.end(last, done=False)


async def _wait(request: web.Request, session: Session, variable: Variable) -> None:
    """Wait until the variable is final. Raises RequestError after the timeout of the request."""
    seconds, objective = _timeout(request), _objective(request)
    with subscribed(request.app[SERVICES].scheduler, [variable], objective, session=session):
        try:
            async with asyncio.timeout(seconds):
                await variable.wait_final()
        except TimeoutError:
            message = (
                f"{variable.name!r} is still {variable.state} after {seconds:g} s; repeat the request to wait longer"
            )
            raise RequestError(504, message, code="wait_timeout") from None


def _objective(request: web.Request) -> Objective:
    """Return the objective of the request, latency by default."""
    return Objective(choice_param(request, "objective", ("latency", "throughput")))


def _timeout(request: web.Request) -> float:
    """Return the timeout of the request, in seconds; at most the server's maximum."""
    maximum = request.app[SERVICES].max_wait_seconds
    try:
        seconds = float(request.query.get("timeout", maximum))
    except ValueError:
        seconds = -1.0
    if not 0.0 <= seconds < float("inf"):
        raise RequestError(
            400, "timeout must be a number of seconds, at least 0", code="invalid_value", param="timeout"
        )
    return min(seconds, maximum)
