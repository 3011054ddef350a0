"""Find out which session a request names, before the session is looked up."""

from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import hdrs, web

from gateway.api.semantic.extension import SESSION_HEADER, is_session_id
from gateway.api.services import SERVICES
from gateway.errors import RequestError
from gateway.http.json_body import read_body
from gateway.http.middleware.auth import TENANT

_GRAPHS = "/v1/graphs"
_SESSIONS = "/v1/sessions"
_RESPONSES = "/v1/responses"
_CALLS = ("/v1/chat/completions", "/v1/completions", _RESPONSES)


@dataclass(frozen=True)
class NamedSession:
    """Session that a request names. `creates`: the request creates it if it does not exist."""

    id: str
    creates: bool


class _Body(msgspec.Struct):
    """Fields of a request's body that can name a session."""

    id: Any = None
    session: Any = None
    semantic: Any = None


_body_of = msgspec.json.Decoder(_Body).decode


async def session_in(request: web.Request) -> NamedSession | None:
    """Return the session that a request names: in its path, its body or its header, or by a response that it names.

    Return None if it names none. An invalid name counts as none: the request's handler rejects it.
    """
    resource = request.match_info.route.resource
    route = "" if resource is None else resource.canonical
    if route.startswith(_SESSIONS + "/"):
        id = request.match_info["id"]
        return NamedSession(id, creates=False) if is_session_id(id) else None
    if route.startswith(_RESPONSES + "/"):
        response = await request.app[SERVICES].response_store.find(request[TENANT], request.match_info["id"])
        call_session = None if response is None else response.call_session
        return None if call_session is None else NamedSession(call_session, creates=False)
    if request.method != hdrs.METH_POST or route not in (_SESSIONS, _GRAPHS, *_CALLS):
        return None
    try:
        body = _body_of(await read_body(request))
    except (RequestError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if route == _SESSIONS:
        return NamedSession(body.id, creates=True) if _is_id(body.id) else None
    inside = body.session
    if route in _CALLS:
        inside = body.semantic.get("session") if isinstance(body.semantic, dict) else None
    header = request.headers.get(SESSION_HEADER)
    if inside is not None:
        return NamedSession(inside, creates=False) if _is_id(inside) and header in (None, inside) else None
    return NamedSession(header, creates=True) if header is not None and is_session_id(header) else None


def lists_sessions(request: web.Request) -> bool:
    """Return whether the request lists all sessions of the API key."""
    resource = request.match_info.route.resource
    return resource is not None and resource.canonical == _SESSIONS and request.method == hdrs.METH_GET


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and is_session_id(value)
