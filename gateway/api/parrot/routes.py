"""Parrot's public API, on the same sessions, variables and calls as the other endpoints. See `compat/parrot`.

A client authenticates by the number of its session, which cannot be guessed.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from functools import wraps
from weakref import WeakKeyDictionary, WeakValueDictionary

from aiohttp import ClientConnectionResetError, web

from compat.openai import SessionObject
from compat.parrot import (
    CRITERIA,
    ErrorAnswer,
    NativeCall,
    Nothing,
    Parameter,
    Program,
    ProgramAnswer,
    ProgramRequest,
    Read,
    Register,
    Registered,
    SemanticCall,
    SemanticCallAnswer,
    Set,
    Told,
    Value,
    VariableInfo,
    Variables,
    pieces,
)
from gateway.accounts.accounts import Accounts
from gateway.api.call_spec import check_window
from gateway.api.parrot.lazy_calls import LazyCalls, output_names
from gateway.api.pipeline import offload_if_long
from gateway.api.sampling import parrot_sampling
from gateway.api.semantic.extension import text_of, variable_of
from gateway.api.semantic.sessions import describe_session
from gateway.api.services import SERVICES
from gateway.api.subscription import subscribed
from gateway.errors import FailedCall, RequestError
from gateway.graph.call import CallSpec, Objective
from gateway.graph.events import NullSink
from gateway.graph.ids import new_id
from gateway.graph.references import Reference
from gateway.graph.segments import Input, Slot
from gateway.graph.session import Addition, Session, VariableSpec
from gateway.graph.session_store import SessionNotFound, SessionStore
from gateway.graph.variable import Variable
from gateway.http.json_body import json_response, read_json
from gateway.http.json_stream import json_list, stream_json
from gateway.http.middleware.auth import ApiKeys
from gateway.http.middleware.errors import as_request_error, error_body
from gateway.http.middleware.key_limits import run_limited
from gateway.http.openapi import operation
from gateway.http.slow_client import SlowClient
from gateway.prompts.served_models import ServedModel, ServedModels

routes = web.RouteTableDef()

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Programs:
    """Sessions of Parrot's clients by their numbers, with the lazy calls of each.

    They do not survive a restart: lazy calls are not in the journal, so their outputs would never be assigned.
    """

    def __init__(self, keys: ApiKeys, sessions: SessionStore, accounts: Accounts) -> None:
        self._keys = keys
        self._accounts = accounts
        self._sessions = sessions
        self._known: WeakValueDictionary[int, Session] = WeakValueDictionary()
        self._lazy_calls: WeakKeyDictionary[Session, LazyCalls] = WeakKeyDictionary()

    def create_session(self, api_key: str) -> int:
        """Create a session and return its number. Raises RequestError and GraphError if the API key is unknown or has
        too many sessions."""
        number = secrets.randbits(63)
        session = self._sessions.create(self._keys.authenticate(api_key), str(number), sink=NullSink())
        self._known[number] = session
        self._lazy_calls[session] = LazyCalls()
        return number

    def session(self, number: int, auth: str | None) -> Session:
        """Return a session and restart its time to live. `auth` is checked if it is not None. Raises RequestError and
        GraphError."""
        known = self._known.get(number)
        if known is None:
            raise SessionNotFound(f"there is no session {str(number)[:40]}")
        if auth is not None and not hmac.compare_digest(auth.encode(errors="replace"), session_auth(number).encode()):
            raise RequestError(401, f"incorrect session_auth for session {number}", code="invalid_api_key")
        session = self._sessions.get(known.tenant, known.id)
        self._accounts.check_key(session.tenant)
        if session is not known:  # a client of the other API has deleted it, and created one of the same name
            raise SessionNotFound(f"there is no session {number}")
        return session

    def lazy_calls(self, session: Session) -> LazyCalls:
        """Return the lazy calls of the session."""
        return self._lazy_calls[session]


PROGRAMS = web.AppKey("programs", Programs)


def session_auth(number: int) -> str:
    """Return the `session_auth` of a session. It adds no protection: a client that knows the number may do
    everything."""
    return hashlib.sha256(f"session_auth {number}".encode()).hexdigest()[:32]


def open_routes() -> set[str]:
    """Return the paths of the routes that need no API key in a header: the key is in the body, or the session's number
    suffices."""
    return {route.path for route in routes if isinstance(route, web.RouteDef)}


def parrot_errors(handler: _Handler) -> _Handler:
    """Return a handler whose errors have the shape that Parrot's client reads."""

    @wraps(handler)
    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except (ClientConnectionResetError, SlowClient):  # the answer had begun
            raise
        except Exception as raised:
            error = as_request_error(raised)
            response = json_response({"error": error_body(error).error.message, "traceback": ""}, error.status)
            response.headers.update(error.headers)
            return response

    return handle


@routes.post("/v1/session")
@operation(ProgramAnswer, body=ProgramRequest, errors=(401, 413), error=ErrorAnswer)
@parrot_errors
async def begin(request: web.Request) -> web.Response:
    """Create a session for a program."""
    body = await read_json(request, ProgramRequest)
    number = request.app[PROGRAMS].create_session(body.api_key)
    return json_response({"session_id": number, "session_auth": session_auth(number)})


@routes.get("/v1/session/{id}")
@operation(SessionObject, body=Program, errors=(401, 404, 410), error=ErrorAnswer)
@parrot_errors
async def info(request: web.Request) -> web.Response:
    """Describe the session, as GET /v1/sessions/{id} does."""
    body = await read_json(request, Program)
    return json_response(
        describe_session(request.app[PROGRAMS].session(_number(request), body.session_auth), request.app[SERVICES])
    )


@routes.delete("/v1/session/{id}")
@operation(Nothing, body=Program, errors=(401, 404, 410), error=ErrorAnswer)
@parrot_errors
async def end(request: web.Request) -> web.Response:
    """Delete the session. Its running calls are cancelled and their KV is freed."""
    body = await read_json(request, Program)
    request.app[SERVICES].sessions.delete(request.app[PROGRAMS].session(_number(request), body.session_auth))
    return json_response({})


def _number(request: web.Request) -> int:
    text = request.match_info["id"]
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise SessionNotFound(f"there is no session {text[:40]}: session ids are integers")
    return int(text)


@routes.post("/v1/semantic_call")
@operation(SemanticCallAnswer, body=SemanticCall, errors=(401, 404, 409, 410, 429, 503), error=ErrorAnswer)
@parrot_errors
async def call(request: web.Request) -> web.Response:
    """Accept a call.

    It runs when a client asks for one of its outputs, or immediately if the request has `output_criteria`.
    """
    body = await read_json(request, SemanticCall)
    session = request.app[PROGRAMS].session(body.session_id, body.session_auth)
    return await _limited(request, session, lambda: _accept(request, body, session))


async def _limited(
    request: web.Request, session: Session, answer: Callable[[], Awaitable[web.Response]]
) -> web.Response:
    """Return an answer once the limits of the session's API key admit the request. Raises LimitReached."""
    limits = request.app[SERVICES].accounts.limits_of(session.tenant)
    return await answer() if limits is None else await run_limited(limits, answer)


async def _accept(request: web.Request, body: SemanticCall, session: Session) -> web.Response:
    services, programs = request.app[SERVICES], request.app[PROGRAMS]
    lazy_calls = programs.lazy_calls(session)
    model = await _model(services.models_of(session.tenant), body)
    services.scheduler.admit(session.tenant, continues=bool(session.calls))
    names = _variable_names(body, session)
    spec = await offload_if_long(lambda: _spec(body, model, names), len(body.template), model)
    values = [
        VariableSpec(names[parameter.name], text_of(parameter.value), where=f"parameters.{index}.value")
        for index, parameter in enumerate(body.parameters)
        if parameter.value is not None
    ]
    addition = lazy_calls.add(session, spec, values)
    await services.scheduler.start(session, addition)
    output_variables = output_names(spec)
    if body.output_criteria is not None or any(_is_needed(session, name) for name in output_variables):
        await _join_and_start(request, session, output_variables)
    parameters: list[Told] = [
        {
            "parameter_name": parameter.name,
            "is_output": parameter.is_output,
            "var_name": _label(names[parameter.name]),
            "var_id": names[parameter.name],
        }
        for parameter in pieces(body)
        if isinstance(parameter, Parameter)
    ]
    return json_response({"request_id": secrets.randbits(63), "param_info": parameters})


def _is_needed(session: Session, name: str) -> bool:
    variable = session.variable(name)
    return bool(variable.subscribers or variable.consumers)


async def _join_and_start(request: web.Request, session: Session, names: Collection[str]) -> None:
    """Start the lazy calls that assign these variables. Raises Overloaded and GraphError if the API key has too many
    calls, or a call is invalid."""
    lazy_calls, scheduler = request.app[PROGRAMS].lazy_calls(session), request.app[SERVICES].scheduler
    if any(lazy_calls.produces(name) for name in names):
        scheduler.admit(session.tenant, continues=bool(session.calls))
        await request.app[SERVICES].accounts.make_room(session.tenant)
    addition: Addition = lazy_calls.join(session, names)
    await scheduler.start(session, addition, promised=True)


async def _model(models: ServedModels, body: SemanticCall) -> ServedModel:
    """Return the first model of the request that is served; any model if the request names none. Raises
    RequestError."""
    served = {model.id: model for model in await models.all()}
    for name in body.models:
        if name in served:
            return served[name]
    if body.models or not served:
        message = f"none of the models {', '.join(body.models)} is served; served: {', '.join(served)}"
        raise RequestError(404, message, code="model_not_found", param="models")
    return next(iter(served.values()))


def _variable_names(body: SemanticCall, session: Session) -> dict[str, str]:
    """Return the variable of each parameter. Raises RequestError if the request names an unknown variable."""
    names = {}
    for parameter in body.parameters:
        if parameter.var_id is not None:
            variable_of(session, parameter.var_id)
        names[parameter.name] = parameter.var_id or _new_name(parameter.name)
    return names


def _new_name(label: str) -> str:
    """Return a new variable's name for a parameter's name, which several calls may use."""
    plain = re.sub(r"[^A-Za-z0-9_]", "_", label[:40], flags=re.ASCII)
    return f"{plain if plain[:1].isalpha() else f'v_{plain}'}_{new_id(16)}"


def _label(name: str) -> str:
    """Return the name that the client knows a variable by."""
    return name.rpartition("_")[0] or name


def _spec(body: SemanticCall, model: ServedModel, names: dict[str, str]) -> CallSpec:
    """Return the call. Raises RequestError; changes nothing."""
    template: list[str | Input | Slot] = []
    places = {parameter.name: index for index, parameter in enumerate(body.parameters)}
    outputs: set[str] = set()
    for piece in pieces(body):
        if isinstance(piece, str):
            template.append(piece)
        elif piece.is_output and piece.name not in outputs:
            outputs.add(piece.name)
            where = f"parameters.{places[piece.name]}"
            template.append(
                Slot(names[piece.name], parrot_sampling(piece.sampling_config, model, where), where=where, heals=True)
            )
        else:
            template.append(Input(Reference(names[piece.name]), "template"))
    slots = [index for index, piece in enumerate(template) if isinstance(piece, Slot)]
    if not slots:
        raise RequestError(
            400, "the template has no output, so there is nothing to generate", code="invalid_value", param="template"
        )
    del template[slots[-1] + 1 :]  # text after the last output has no effect
    last = template[-1]
    assert isinstance(last, Slot)
    template[-1] = Slot(None, last.sampling, where=last.where, heals=True)
    segments = model.prompts.template(template, where="template")
    check_window(model, segments, "template")
    criteria = body.output_criteria
    return CallSpec(
        model=model.id,
        segments=segments,
        output=last.name,
        deferred=True,
        objective=None if criteria is None else Objective(CRITERIA[criteria]),
        salt="" if body.cache_prefix else new_id(16),
        where="template",
    )


@routes.post("/v1/semantic_var")
@operation(Registered, body=Register, errors=(401, 404, 410), error=ErrorAnswer)
@parrot_errors
async def register(request: web.Request) -> web.Response:
    """Declare a variable that a client sets, or a call assigns, later."""
    body = await read_json(request, Register)
    session = request.app[PROGRAMS].session(body.session_id, body.session_auth)
    name = _new_name(body.var_name)
    await request.app[SERVICES].scheduler.start(session, session.add_variable(name))
    return json_response({"var_id": name})


@routes.post("/v1/semantic_var/{id}")
@operation(Nothing, body=Set, errors=(401, 404, 409, 410), error=ErrorAnswer)
@parrot_errors
async def set_value(request: web.Request) -> web.Response:
    """Set the value of a declared variable, once."""
    body = await read_json(request, Set)
    programs, name = request.app[PROGRAMS], request.match_info["id"]
    session = programs.session(body.session_id, body.session_auth)
    variable_of(session, name)
    if programs.lazy_calls(session).produces(name):
        raise RequestError(409, f"{name!r} is the output of a call and cannot be set", code="variable_already_set")
    await request.app[SERVICES].scheduler.start(session, session.add_variable(name, body.content))
    return json_response({})


@routes.get("/v1/semantic_var")
@operation(Variables, body=Read, errors=(401, 404, 410), error=ErrorAnswer)
@parrot_errors
async def list_variables(request: web.Request) -> web.StreamResponse:
    """Return all variables of the session, with the values that are there."""
    body = await read_json(request, Read)
    session = request.app[PROGRAMS].session(body.session_id, body.session_auth)
    return await stream_json(request, _list_pieces(list(session.variables.values())))


def _list_pieces(variables: Sequence[Variable]) -> Iterator[bytes]:
    yield b"{"
    yield from json_list("vars", map(_describe, variables))
    yield b"}"


def _describe(variable: Variable) -> VariableInfo:
    return {
        "var_id": variable.name,
        "var_name": _label(variable.name),
        "state": variable.state,
        "content": variable.value if variable.has_value else None,
    }


@routes.get("/v1/semantic_var/{id}")
@operation(Value, body=Read, errors=(401, 404, 409, 410, 422, 424, 429, 503), error=ErrorAnswer)
@parrot_errors
async def get_value(request: web.Request) -> web.Response:
    """Wait for a variable and return its value. The call that assigns it starts now, if it has not started."""
    body = await read_json(request, Read)
    session = request.app[PROGRAMS].session(body.session_id, body.session_auth)
    variable = variable_of(session, request.match_info["id"])
    if variable.state.is_final:
        return await _read(request, body, session, variable)
    return await _limited(request, session, lambda: _read(request, body, session, variable))


async def _read(request: web.Request, body: Read, session: Session, variable: Variable) -> web.Response:
    scheduler, objective = request.app[SERVICES].scheduler, Objective(CRITERIA[body.criteria])
    with subscribed(scheduler, [variable], objective, session=session):
        await _join_and_start(request, session, [variable.name])
        await variable.wait_final()
    if variable.failure is not None:
        raise FailedCall(variable.failure)
    return json_response({"content": variable.value})


@routes.post("/v1/py_native_call")
@operation(body=NativeCall, errors=(), error=ErrorAnswer)
@parrot_errors
async def native_call(request: web.Request) -> web.Response:
    """Refuse native functions: the server runs no code of clients."""
    body = await read_json(request, NativeCall)
    raise RequestError(
        400,
        f"native functions are not supported: {body.func_name!r} is code of the client; read its inputs and set its "
        "output with POST /v1/semantic_var/{id}, or use Semantic Variables (docs/semantic-variables.md): a transform "
        "extracts a part of an answer, and a template joins texts",
        code="unsupported_value",
    )
