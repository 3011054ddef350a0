"""gateway/cluster/session_routing.py: the session that a request names."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from gateway.api.services import SERVICES
from gateway.cluster.forwarding import RequestedSession
from gateway.cluster.session_routing import is_session_list, requested_session
from gateway.http.middleware.auth import TENANT
from gateway.responses import MemoryDatabase, SqliteResponseStore, StoredResponse

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
MESSAGES = "/v1/messages"
HEADER = {"X-Semantic-Session": "mine"}
AGENT = {"X-Session-Id": "mine"}


async def named(method: str, path: str, body: Any = None, headers: Any = None) -> tuple[RequestedSession | None, bool]:
    """Return what a request names, and whether it lists all sessions."""
    found: list[tuple[RequestedSession | None, bool]] = []

    @web.middleware
    async def look(request: web.Request, handler: Any) -> web.StreamResponse:
        request[TENANT] = "t"
        found.append((await requested_session(request), is_session_list(request)))
        return web.Response()

    async def never(request: web.Request) -> web.StreamResponse:
        raise AssertionError

    store = SqliteResponseStore(MemoryDatabase(), 1 << 20, 60.0, owns=True)
    await store.add(StoredResponse("t", "resp_bg", b"1", b"2", resume_data=b"3", call_session="its-own"))
    await store.add(StoredResponse("t", "resp_done", b"1", b"2", session="mine"))
    await store.add(StoredResponse("other", "resp_others", b"1", b"2", resume_data=b"3", call_session="not-mine"))
    app = web.Application(middlewares=[look])
    services: Any = SimpleNamespace(response_store=store)
    app[SERVICES] = services
    routes = ("/v1/sessions", "/v1/sessions/{id}", "/v1/sessions/{id}/variables/{name}", "/v1/graphs", "/v1/models")
    for route in (*routes, CHAT, COMPLETIONS, MESSAGES, RESPONSES, RESPONSES + "/{id}"):
        app.router.add_route("*", route, never)
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    async with TestClient(TestServer(app)) as client, client.request(method, path, data=data, headers=headers):
        pass
    await store.close()
    return found[0]


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "expected"),
    [
        ("GET", "/v1/sessions/mine", None, None, RequestedSession("mine", False)),
        ("PUT", "/v1/sessions/mine/variables/x", {"value": "1"}, None, RequestedSession("mine", False)),
        ("GET", "/v1/sessions/" + "x" * 300, None, None, None),
        ("POST", "/v1/sessions", {"id": "mine"}, None, RequestedSession("mine", True)),
        ("POST", "/v1/sessions", {}, None, None),
        ("POST", "/v1/sessions", {"id": 5}, None, None),
        ("POST", "/v1/graphs", {"session": "mine"}, None, RequestedSession("mine", False)),
        ("POST", "/v1/graphs", {}, HEADER, RequestedSession("mine", True)),
        ("POST", CHAT, {"semantic": {"session": "mine"}}, None, RequestedSession("mine", False)),
        ("POST", CHAT, {"semantic": {"session": "mine"}}, HEADER, RequestedSession("mine", False)),
        ("POST", CHAT, {"semantic": {"session": "other"}}, HEADER, None),
        ("POST", CHAT, {"session": "mine"}, None, None),
        ("POST", CHAT, {"semantic": "mine"}, HEADER, RequestedSession("mine", True)),
        ("POST", CHAT, {}, HEADER, RequestedSession("mine", True)),
        ("POST", CHAT, {}, {"X-Semantic-Session": "not an id/"}, None),
        ("POST", CHAT, {}, AGENT, None),
        ("POST", CHAT, {"messages": "cout << x"}, AGENT, None),
        ("POST", CHAT, {"messages": "<<interface>>"}, AGENT, RequestedSession("mine", False)),
        ("POST", CHAT, b'{"messages": "\\u003c\\u003Cx>>"}', AGENT, RequestedSession("mine", False)),
        ("POST", CHAT, {"messages": "<<x>>"}, {"X-Session-Id": "no/id"}, None),
        ("POST", CHAT, {"semantic": {}}, AGENT, RequestedSession("mine", True)),
        ("POST", CHAT, {}, {**AGENT, "X-Semantic-Defer": "true"}, RequestedSession("mine", True)),
        ("POST", CHAT, {}, {**AGENT, "X-Semantic-Session": "other"}, RequestedSession("other", True)),
        ("POST", CHAT, {"semantic": {"session": "other"}}, AGENT, None),
        ("POST", RESPONSES, {"previous_response_id": "resp_done"}, AGENT, RequestedSession("mine", False)),
        ("POST", "/v1/graphs", {}, AGENT, RequestedSession("mine", True)),
        ("POST", CHAT, b"{", HEADER, None),
        ("POST", CHAT, b"\xff", HEADER, None),
        ("POST", COMPLETIONS, {}, HEADER, RequestedSession("mine", True)),
        ("POST", MESSAGES, {"semantic": {"session": "mine"}}, None, RequestedSession("mine", False)),
        ("POST", MESSAGES, {}, HEADER, RequestedSession("mine", True)),
        ("POST", RESPONSES, {"semantic": {"session": "mine"}}, None, RequestedSession("mine", False)),
        ("GET", CHAT, None, HEADER, None),
        ("GET", "/v1/models", None, HEADER, None),
        ("GET", "/nowhere", None, HEADER, None),
        ("GET", RESPONSES + "/resp_bg", None, None, RequestedSession("its-own", False)),
        ("POST", RESPONSES + "/resp_bg", None, None, RequestedSession("its-own", False)),
        ("GET", RESPONSES + "/resp_done", None, None, None),
        ("GET", RESPONSES + "/resp_others", None, None, None),
        ("GET", RESPONSES + "/resp_none", None, None, None),
    ],
)
async def test_the_named_session(method: str, path: str, body: Any, headers: Any, expected: Any) -> None:
    assert (await named(method, path, body, headers))[0] == expected


@pytest.mark.parametrize(
    ("method", "path", "lists"),
    [
        ("GET", "/v1/sessions", True),
        ("POST", "/v1/sessions", False),
        ("GET", "/v1/sessions/a", False),
        ("GET", "/x", False),
    ],
)
async def test_requests_for_all_sessions(method: str, path: str, lists: bool) -> None:
    assert (await named(method, path))[1] is lists
