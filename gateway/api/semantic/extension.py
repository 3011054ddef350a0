"""Translate the `semantic` extension: which session a request belongs to, and how calls and variables are described."""

from dataclasses import dataclass
from typing import Any

from aiohttp import web

from compat.openai import FailureObject, Semantic, SemanticInfo, VariableObject
from compat.openai import Transform as WireTransform
from gateway.api.services import SERVICES
from gateway.errors import RequestError, field_path
from gateway.graph.call import Call
from gateway.graph.errors import Failure
from gateway.graph.session import Session
from gateway.graph.transform import Transform
from gateway.graph.variable import Variable, VariableState
from gateway.http.middleware.auth import TENANT
from gateway.http.query_params import parse_bool
from gateway.runtime import regex as patterns
from gateway.runtime.json_codec import encode_json

SESSION_HEADER = "X-Session-Id"
DEFER_HEADER = "X-Semantic-Defer"
SESSION_HEADERS = {
    SESSION_HEADER: {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
    DEFER_HEADER: {"type": "string", "enum": ["true", "false"]},
}
"""JSON schemas of the headers."""
NO_EXTENSION = Semantic()
"""The extension of a request without one."""
_SESSION_ID_HELP = "at most 128 letters, digits and ._:-"


@dataclass(frozen=True)
class Scope:
    """The session of a request. `is_named`: whether other requests can name it, so that prompts may contain
    references."""

    session: Session
    is_named: bool
    is_deferred: bool


def text_of(value: Any) -> str:
    """Return the text of a variable's value: a string as it is, any other value as compact JSON."""
    return value if isinstance(value, str) else encode_json(value).decode()


def scope_of(request: web.Request, semantic: Semantic | None) -> Scope:
    """Return the session that the body or a header names; a new one without an id if neither does.

    Raises RequestError and GraphError; see docs/api.md.
    """
    sessions, headers = request.app[SERVICES].sessions, request.headers
    if semantic is None and SESSION_HEADER not in headers and DEFER_HEADER not in headers:  # a plain request
        return Scope(sessions.build(request[TENANT]), is_named=False, is_deferred=False)
    deferred = _is_deferred(request, semantic)
    session = find_named_session(request, semantic.session if semantic else None, "semantic.session")
    if session is None:
        _require_session(semantic, deferred)
        return Scope(sessions.build(request[TENANT]), is_named=False, is_deferred=False)
    return Scope(session, is_named=True, is_deferred=deferred)


def find_named_session(request: web.Request, body: str | None, where: str) -> Session | None:
    """Return the session that the body, at `where`, or the header names; None if neither does. Raises RequestError and
    GraphError."""
    sessions, tenant = request.app[SERVICES].sessions, request[TENANT]
    header = request.headers.get(SESSION_HEADER)
    if header is not None and not is_session_id(header):
        raise RequestError(400, f"{SESSION_HEADER} must be a session id: {_SESSION_ID_HELP}", code="invalid_value")
    if header is not None and body is not None and header != body:
        raise RequestError(
            400,
            f"the header {SESSION_HEADER} names session {header!r}, but the body names {body!r}",
            code="session_conflict",
            param=where,
        )
    if body is not None:
        return sessions.get(tenant, body)
    return None if header is None else sessions.get_or_create(tenant, header)


def is_session_id(text: str) -> bool:
    """Return whether the text is a valid session id. `.` and `..` are not: clients resolve them in paths, so requests
    could not name such a session."""
    return (
        0 < len(text) <= 128
        and text not in (".", "..")
        and all(char.isascii() and (char.isalnum() or char in "._:-") for char in text)
    )


def _is_deferred(request: web.Request, semantic: Semantic | None) -> bool:
    if semantic is not None and semantic.defer is not None:
        return semantic.defer
    return parse_bool(request.headers.get(DEFER_HEADER, "false").lower(), DEFER_HEADER)


def _require_session(semantic: Semantic | None, deferred: bool) -> None:
    """Raise RequestError if the request uses variables without a session."""
    fields = [("defer", deferred)]
    if semantic is not None:
        fields += [
            ("inputs", bool(semantic.inputs)),
            ("output", semantic.output is not None),
            ("slots", bool(semantic.slots)),
        ]
    for name, is_used in fields:
        if is_used:
            raise RequestError(
                400,
                f"semantic.{name} requires a session: set semantic.session or the header {SESSION_HEADER}",
                code="unsupported_with_semantic",
                param=f"semantic.{name}",
            )


def transform_of(transform: WireTransform | None, where: str) -> Transform | None:
    """Return the domain's transform for a request's. `where`: its path. Raises RequestError if it cannot be run."""
    if transform is None:
        return None
    if transform.regex is not None:
        try:
            groups = patterns.compiled(transform.regex).groups
        except patterns.BadPattern as error:
            param = field_path(where, "regex")
            raise RequestError(400, f"{param}: {error}", code="invalid_value", param=param) from None
        if transform.group > groups:
            param = field_path(where, "group")
            message = f"{param}: the pattern has {groups} groups, but group is {transform.group}"
            raise RequestError(400, message, code="invalid_value", param=param)
    return Transform(transform.strip, transform.line, transform.regex, transform.group, transform.json_)


def variable_of(session: Session, name: str) -> Variable:
    """Return the variable that the path names. Raises RequestError 404."""
    if name not in session.variables:
        raise RequestError(404, f"session {session.id} has no variable {name!r}", code="variable_not_found")
    return session.variables[name]


def describe_call(session: Session, call: Call) -> SemanticInfo:
    """Return the `semantic` object of an answer."""
    return {
        "session": session.id,
        "call": call.id,
        "output": call.output.name,
        "status": call.state,
        "waiting_on": call.waiting_on,
        "variables": {name: slot.value for name, slot in call.slots.items() if slot.state is VariableState.READY},
    }


def describe_failure(failure: Failure | None) -> FailureObject | None:
    """Return the error object of a value that has failed; None if it has not."""
    return None if failure is None else {"code": failure.code, "message": failure.message, "call": failure.call}


def describe_variable(variable: Variable) -> VariableObject:
    """Return the JSON object of a variable."""
    return {
        "name": variable.name,
        "state": variable.state,
        "value": variable.value if variable.state is VariableState.READY else None,
        "error": describe_failure(variable.failure),
        "producer": variable.producer.id if variable.producer else None,
        "consumers": [call.id for call in variable.consumers],
    }
