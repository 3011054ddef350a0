"""Which session a request names, before anybody has looked for it."""

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
class Named:
    """The session that a request names. `creates`: it is made if nobody has it."""

    id: str
    creates: bool


class _Body(msgspec.Struct):
    """Of a request's body, what may name a session."""

    id: Any = None
    session: Any = None
    semantic: Any = None


_body_of = msgspec.json.Decoder(_Body).decode


async def session_in(request: web.Request) -> Named | None:
    """The session that a request names in its path, its body or its header, or in which the response is made that it
    names.

    None if it names none, or if what it says of one is no sense: whoever handles it will say so.
    """
    resource = request.match_info.route.resource
    route = "" if resource is None else resource.canonical
    if route.startswith(_SESSIONS + "/"):
        id = request.match_info["id"]
        return Named(id, creates=False) if is_session_id(id) else None
    if route.startswith(_RESPONSES + "/"):
        response = await request.app[SERVICES].archive.find(request[TENANT], request.match_info["id"])
        runs_in = None if response is None else response.runs_in
        return None if runs_in is None else Named(runs_in, creates=False)
    if request.method != hdrs.METH_POST or route not in (_SESSIONS, _GRAPHS, *_CALLS):
        return None
    try:
        body = _body_of(await read_body(request))
    except (RequestError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if route == _SESSIONS:
        return Named(body.id, creates=True) if _is_id(body.id) else None
    inside = body.session
    if route in _CALLS:
        inside = body.semantic.get("session") if isinstance(body.semantic, dict) else None
    header = request.headers.get(SESSION_HEADER)
    if inside is not None:
        return Named(inside, creates=False) if _is_id(inside) and header in (None, inside) else None
    return Named(header, creates=True) if header is not None and is_session_id(header) else None


def lists_sessions(request: web.Request) -> bool:
    """Whether it asks for all of the key's sessions."""
    resource = request.match_info.route.resource
    return resource is not None and resource.canonical == _SESSIONS and request.method == hdrs.METH_GET


def _is_id(given: Any) -> bool:
    return isinstance(given, str) and is_session_id(given)
