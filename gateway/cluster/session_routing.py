"""Find out which session a request names, before the session is looked up."""

from typing import Any

import msgspec
from aiohttp import hdrs, web

from gateway.api.semantic.extension import (
    is_session_id,
    may_have_references,
    session_header_of,
    uses_variables,
)
from gateway.api.services import SERVICES
from gateway.cluster.forwarding import RequestedSession
from gateway.errors import RequestError
from gateway.http.json_body import read_body
from gateway.http.middleware.auth import TENANT

_GRAPHS = "/v1/graphs"
_SESSIONS = "/v1/sessions"
_RESPONSES = "/v1/responses"
_CALLS = ("/v1/chat/completions", "/v1/completions", "/v1/messages", _RESPONSES)


class _Body(msgspec.Struct):
    """Fields of a request's body that can name a session."""

    id: Any = None
    session: Any = None
    semantic: Any = None
    previous_response_id: Any = None


_body_of = msgspec.json.Decoder(_Body).decode


async def requested_session(request: web.Request) -> RequestedSession | None:
    """Return the session that a request names: in its path, its body or its header, or by a response that it names.

    Return None if it names none. An invalid name counts as none: the request's handler rejects it.
    """
    resource = request.match_info.route.resource
    route = "" if resource is None else resource.canonical
    if route.startswith(_SESSIONS + "/"):
        id = request.match_info["id"]
        return RequestedSession(id, may_create=False) if is_session_id(id) else None
    if route.startswith(_RESPONSES + "/{id}"):
        response = await request.app[SERVICES].response_store.find(request[TENANT], request.match_info["id"])
        call_session = None if response is None else response.call_session
        return None if call_session is None else RequestedSession(call_session, may_create=False)
    if request.method != hdrs.METH_POST or route not in (_SESSIONS, _GRAPHS, *_CALLS):
        return None
    try:
        raw = await read_body(request)
        body = _body_of(raw)
    except (RequestError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if route == _SESSIONS:
        return RequestedSession(body.id, may_create=True) if _is_id(body.id) else None
    in_body = body.session
    if route in _CALLS:
        in_body = body.semantic.get("session") if isinstance(body.semantic, dict) else None
    _, header = session_header_of(request.headers)
    if in_body is not None:
        return RequestedSession(in_body, may_create=False) if _is_id(in_body) and header in (None, in_body) else None
    if header is None or not is_session_id(header):
        return None
    if route == _GRAPHS or uses_variables(request.headers, has_semantic=body.semantic is not None):
        return RequestedSession(header, may_create=True)
    # an agent's request is in the session only if it reads the session's variables or continues one of its responses
    reads = may_have_references(raw) or body.previous_response_id is not None
    return RequestedSession(header, may_create=False) if reads else None


def is_session_list(request: web.Request) -> bool:
    """Return whether the request lists all sessions of the API key."""
    resource = request.match_info.route.resource
    return resource is not None and resource.canonical == _SESSIONS and request.method == hdrs.METH_GET


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and is_session_id(value)
