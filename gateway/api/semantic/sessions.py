"""Create, list, read and delete sessions."""

import time
from collections.abc import Iterator, Sequence
from typing import cast

from aiohttp import web

from compat.openai import SessionList, SessionObject, SessionRequest, SessionState, SessionUsage
from gateway.api.semantic.tool_forms import limits_of
from gateway.api.services import SERVICES, Services
from gateway.graph.session import Session
from gateway.http.json_body import json_response, read_json
from gateway.http.json_stream import json_list, stream_json
from gateway.http.middleware.auth import TENANT
from gateway.http.openapi import operation

routes = web.RouteTableDef()


def session_of(request: web.Request) -> Session:
    """Return the session that the path names. Raises SessionNotFound or SessionExpired."""
    return request.app[SERVICES].sessions.get(request[TENANT], request.match_info["id"])


def describe_session(session: Session, services: Services) -> SessionObject:
    """Return the JSON object of a session."""
    state: SessionState = "deleted" if session.is_closed else "running" if session.is_running else "idle"
    usage = cast("SessionUsage", session.usage())
    if services.prices:
        usage["cost"] = sum(map(services.prices.cost_of_call, session.calls.values()))
    described: SessionObject = {
        "id": session.id,
        "object": "session",
        "created_at": int(session.created),
        "expires_at": int(time.time() + session.ttl - (time.monotonic() - session.last_used)),
        "metadata": session.metadata,
        "state": state,
        "usage": usage,
    }
    if session.budget is not None:
        limits = session.budget.limits
        described["limits"] = {
            "tokens": limits.tokens,
            "cost": limits.cost,
            "calls": limits.calls,
            "seconds": limits.seconds,
        }
    return described


@routes.post("/v1/sessions")
@operation(SessionObject, body=SessionRequest, status=201, errors=(409, 503))
async def create(request: web.Request) -> web.Response:
    """Create a session. The client may choose its id."""
    body = await read_json(request, SessionRequest)
    services, limits = request.app[SERVICES], limits_of(body.limits)
    services.check_limits(limits)
    session = services.sessions.create(request[TENANT], body.id, metadata=body.metadata, ttl=body.ttl, limits=limits)
    await session.event_log.flush()
    return json_response(describe_session(session, services), status=201)


@routes.get("/v1/sessions")
@operation(SessionList, errors=(503,))
async def list_sessions(request: web.Request) -> web.StreamResponse:
    """List the sessions of the API key."""
    services = request.app[SERVICES]
    sessions = list(services.sessions.of_tenant(request[TENANT]))
    return await stream_json(request, _list_pieces(sessions, services))


def _list_pieces(sessions: Sequence[Session], services: Services) -> Iterator[bytes]:
    yield b'{"object":"list",'
    yield from json_list("data", (describe_session(session, services) for session in sessions if not session.is_closed))
    yield b"}"


@routes.get("/v1/sessions/{id}")
@operation(SessionObject, errors=(404, 410, 503))
async def get(request: web.Request) -> web.Response:
    """Return one session."""
    return json_response(describe_session(session_of(request), request.app[SERVICES]))


@routes.delete("/v1/sessions/{id}")
@operation(SessionObject, errors=(404, 410, 503))
async def delete(request: web.Request) -> web.Response:
    """Delete a session. Its running calls are cancelled and their KV is freed."""
    services, session = request.app[SERVICES], session_of(request)
    services.sessions.delete(session)
    described = describe_session(session, services)  # the session is dissolved soon
    await services.response_store.delete_sessions([(session.tenant, session.id)])
    await session.event_log.flush()
    return json_response(described)
