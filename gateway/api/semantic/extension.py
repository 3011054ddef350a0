"""Translate the `semantic` extension: which session a request belongs to, and how calls and variables are described."""

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from compat.openai import FailureObject, Semantic, SemanticInfo, VariableObject
from compat.openai import Transform as WireTransform
from gateway.api.services import SERVICES
from gateway.errors import RequestError, field_path
from gateway.graph.call import Call
from gateway.graph.errors import Failure
from gateway.graph.references import EVERY_NAME, NO_NAME, find_names
from gateway.graph.session import Session
from gateway.graph.transform import Transform
from gateway.graph.variable import Variable, VariableState
from gateway.http.middleware.auth import TENANT
from gateway.http.query_params import parse_bool
from gateway.runtime import regex as patterns
from gateway.runtime.executors import offload
from gateway.runtime.json_codec import encode_json

SESSION_HEADER = "X-Semantic-Session"
"""Header that names the session of a request that uses variables."""
AGENT_SESSION_HEADER = "X-Session-Id"
"""Header that agents send without knowing of variables. It names a session only for requests that use variables in
another way, or that read a variable which the session has."""
DEFER_HEADER = "X-Semantic-Defer"
COST_HEADER = "X-Include-Cost"
"""Header of requests whose answers include their cost in `usage`."""
CALL_HEADERS = {
    SESSION_HEADER: {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
    AGENT_SESSION_HEADER: {"type": "string"},
    DEFER_HEADER: {"type": "string", "enum": ["true", "false"]},
    COST_HEADER: {"type": "string", "enum": ["true", "false"]},
}
"""JSON schemas of the headers of requests that make calls."""
NO_EXTENSION = Semantic()
"""The extension of a request without one."""
_SESSION_ID_HELP = "at most 128 letters, digits and ._:-"
_LONG_BYTES = 100_000
"""Size of a body from which it is searched in a thread."""
_MAY_HAVE_REFERENCE = re.compile(rb"(?:<|\\u003[cC]){2}[A-Za-z_\\]")
_ASCII_ESCAPE = re.compile(rb"\\u00([0-7][0-9A-Fa-f])")
"""Escape of an ASCII character in JSON. Some libraries escape `<` and `>`."""


@dataclass(frozen=True)
class Scope:
    """The session of a request. `is_named`: whether other requests can name it, so that prompts may contain
    references. `references`: names for which `<<name>>` in a prompt is a reference."""

    session: Session
    is_named: bool
    is_deferred: bool
    references: Container[str] = NO_NAME


def text_of(value: Any) -> str:
    """Return the text of a variable's value: a string as it is, any other value as compact JSON."""
    return value if isinstance(value, str) else encode_json(value).decode()


async def scope_of(request: web.Request, semantic: Semantic | None) -> Scope:
    """Return the session that the body or a header names; a new one without an id if neither does.

    A request that only `X-Session-Id` connects with a session is in that session if a text of its body names a variable
    of the session; otherwise it is a plain request. Raises RequestError and GraphError; see docs/api.md.
    """
    sessions, headers = request.app[SERVICES].sessions, request.headers
    names_session = SESSION_HEADER in headers or AGENT_SESSION_HEADER in headers
    if semantic is None and not names_session and DEFER_HEADER not in headers:  # a plain request
        return Scope(sessions.build(request[TENANT]), is_named=False, is_deferred=False)
    if uses_variables(headers, has_semantic=semantic is not None):
        deferred = _is_deferred(request, semantic)
        session = find_named_session(request, semantic.session if semantic else None, "semantic.session")
        if session is not None:
            return Scope(session, is_named=True, is_deferred=deferred, references=EVERY_NAME)
        _require_session(semantic, deferred)
    elif (session := find_agent_session(request)) is not None:
        raw = await request.read()
        if len(raw) < _LONG_BYTES:
            names = _known_names(raw, session.variables)
        else:
            names = await offload(lambda: _known_names(raw, session.variables), len(raw))
        if names:
            return agent_scope(session, names)
    return Scope(sessions.build(request[TENANT]), is_named=False, is_deferred=False)


def agent_scope(session: Session, names: Container[str]) -> Scope:
    """Return the scope of a request that only `X-Session-Id` connects with the session: `<<name>>` is a reference for
    these names, and text for all others."""
    return Scope(session, is_named=True, is_deferred=False, references=names)


def uses_variables(headers: Mapping[str, str], *, has_semantic: bool) -> bool:
    """Return whether a request uses Semantic Variables, so that every `<<name>>` in it is a reference.

    `X-Session-Id` alone does not say so: agents send it by themselves, with texts that are full of `<<name>>`.
    """
    return has_semantic or SESSION_HEADER in headers or DEFER_HEADER in headers


def find_agent_session(request: web.Request) -> Session | None:
    """Return the existing session that `X-Session-Id` names; None if there is none."""
    sessions, id = request.app[SERVICES].sessions, request.headers.get(AGENT_SESSION_HEADER, "")
    return sessions.get(request[TENANT], id) if sessions.holds(request[TENANT], id) else None


def may_have_references(raw: bytes) -> bool:
    """Return whether a JSON body may contain references."""
    return _MAY_HAVE_REFERENCE.search(raw) is not None


def _known_names(raw: bytes, variables: Container[str]) -> frozenset[str]:
    """Return the names among `variables` that stand as references anywhere in a JSON body."""
    if not may_have_references(raw):
        return frozenset()
    if b"\\u00" in raw:
        raw = _ASCII_ESCAPE.sub(lambda escape: bytes([int(escape[1], 16)]), raw)
    return frozenset(name for name in find_names(raw.decode("utf-8", "replace")) if name in variables)


def find_named_session(request: web.Request, body: str | None, where: str) -> Session | None:
    """Return the session that the body, at `where`, or a header names; None if neither does. Raises RequestError and
    GraphError."""
    sessions, tenant = request.app[SERVICES].sessions, request[TENANT]
    name, header = session_header_of(request.headers)
    if header is not None and not is_session_id(header):
        raise RequestError(400, f"{name} must be a session id: {_SESSION_ID_HELP}", code="invalid_value")
    if header is not None and body is not None and header != body:
        raise RequestError(
            400,
            f"the header {name} names session {header!r}, but the body names {body!r}",
            code="session_conflict",
            param=where,
        )
    if body is not None:
        return sessions.get(tenant, body)
    return None if header is None else sessions.get_or_create(tenant, header)


def session_header_of(headers: Mapping[str, str]) -> tuple[str, str | None]:
    """Return the name and the value of the header that names the session: `X-Semantic-Session` before `X-Session-Id`.

    An agent sends the latter by itself, so a client can set the former to any other session.
    """
    name = SESSION_HEADER if SESSION_HEADER in headers else AGENT_SESSION_HEADER
    return name, headers.get(name)


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
            ("defaults", bool(semantic.defaults)),
            ("output", semantic.output is not None),
            ("slots", bool(semantic.slots)),
            ("each", semantic.each is not None),
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
        "value": variable.value if variable.has_value else None,
        "error": describe_failure(variable.failure),
        "producer": variable.producer.id if variable.producer else None,
        "consumers": [call.id for call in variable.consumers],
    }
