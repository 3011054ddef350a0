"""Every route of the application for a client without an API key, and requests that no route answers."""

import asyncio
import json
import platform
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from gateway.app import build_app, build_services
from gateway.config.settings import ServeSettings
from gateway.engines.pool import EnginePool
from gateway.graph.events import NullSink
from gateway.graph.session import VariableSpec
from gateway.prompts.passthrough_builder import PassthroughPromptBuilder
from gateway.prompts.served_models import ServedModel
from gateway.responses import MemoryDatabase, SqliteResponseStore
from gateway.server.listener import listening
from tests.fakes.engine import FakeEngine

OPEN = {
    ("GET", "/"): 200,
    ("GET", "/health"): 200,
    ("GET", "/health/ready"): 200,
    ("GET", "/metrics"): 200,
    ("GET", "/openapi.json"): 200,
    ("GET", "/ui"): 200,
    ("GET", "/ui/{file}"): 404,  # there is no file of this name
}
"""Routes that need no API key, and the status of their answers. Any client on the network may read a route that is
added here. GET includes HEAD."""
PARROT = {
    ("POST", "/v1/session"): 401,
    ("GET", "/v1/session/{id}"): 404,
    ("DELETE", "/v1/session/{id}"): 404,
    ("POST", "/v1/semantic_call"): 404,
    ("POST", "/v1/semantic_var"): 404,
    ("POST", "/v1/semantic_var/{id}"): 404,
    ("GET", "/v1/semantic_var"): 404,
    ("GET", "/v1/semantic_var/{id}"): 404,
    ("POST", "/v1/py_native_call"): 400,
}
"""Routes of Parrot's API, which take the API key or a session's secret number in the body, and the status of their
answers to a client that has neither."""
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND")
KEY, MODEL, SESSION, VARIABLE, VALUE = "sk-hidden-key", "hidden-model", "hidden-session", "hidden_name", "hidden value"
SECRETS = (
    KEY,
    MODEL,
    SESSION,
    VARIABLE,
    VALUE,
    "hidden-alias",
    platform.python_version(),
    ".".join(platform.python_version_tuple()[:2]),
    aiohttp.__version__,
    version("myna"),
    "Python",
    "aiohttp",
)
"""Texts that answers to clients without an API key must not contain."""
MISSING = {
    "error": {
        "message": "Missing API key. Send Authorization: Bearer KEY, or x-api-key: KEY",
        "type": "authentication_error",
        "param": None,
        "code": "invalid_api_key",
    }
}
HEADERS = {"content-type", "content-length", "date", "server", "x-request-id", "www-authenticate", "connection"}
"""Names of the headers of an answer 401."""


@dataclass
class Gateway:
    """A running gateway with a model and a session, and its routes by method and path."""

    address: str
    routes: list[tuple[str, str]]

    def path(self, route: str) -> str:
        """Return a path of the route that exists: with the session and the variable that the gateway has."""
        values = {"id": MODEL if "models" in route else SESSION, "name": VARIABLE, "item": "item_1"}
        if route.startswith(("/v1/session/", "/v1/semantic_var/")):
            values["id"] = "1234567"  # not the number of a session
        return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], "x"), route)


@asynccontextmanager
async def gateway(**fields: Any) -> AsyncIterator[Gateway]:
    """Run a gateway with all its APIs, on the server of `myna serve`."""
    settings = ServeSettings(journal="memory", port=0, engine_wait=0.1, parrot_api=True, **fields)
    pool = EnginePool(0.1)
    pool.add(MODEL, FakeEngine())
    store = SqliteResponseStore(MemoryDatabase(), 1 << 20, 60.0, owns=True)
    services = build_services(settings, pool, NullSink(), store)
    services.models.add(ServedModel(MODEL, 4096, None, None, PassthroughPromptBuilder()))
    services.models.set_aliases({"hidden-alias": MODEL}, {})
    for tenant in ("", "t"):  # the tenant of a server without keys, and that of a client
        session = services.sessions.create(tenant, SESSION)
        session.set_values(session.add_all([], [VariableSpec(VARIABLE, VALUE)]))
    app = build_app(settings, services)
    routes = [(route.method, resource_path(route)) for route in app.router.routes()]
    try:
        async with listening(app, settings) as address:
            yield Gateway(address, routes)
    finally:
        await services.scheduler.close()
        await store.close()


def resource_path(route: web.AbstractRoute) -> str:
    assert route.resource is not None, "every route has a path"
    return route.resource.canonical


def leaks(status: int, headers: Any, body: bytes) -> list[str]:
    """Return the secrets in an answer."""
    answer = f"{status} {dict(headers)} {body.decode(errors='replace')}"
    return [secret for secret in SECRETS if secret in answer]


def closed(gateway: Gateway) -> Iterator[tuple[str, str]]:
    """Yield every method on every path, except those that answer without an API key."""
    for path in dict.fromkeys(path for _, path in gateway.routes):
        for method in METHODS:
            plain = "GET" if method == "HEAD" else method
            if (plain, path) not in OPEN and (plain, path) not in PARROT:
                yield method, path


async def ask(http: aiohttp.ClientSession, method: str, url: str | URL, **options: Any) -> tuple[int, Any, bytes]:
    async with http.request(method, url, allow_redirects=False, **options) as response:
        return response.status, response.headers, await response.read()


def test_the_lists_name_routes_that_exist() -> None:
    async def routes() -> set[tuple[str, str]]:
        async with gateway() as running:
            return set(running.routes)

    existing = asyncio.run(routes())
    assert set(OPEN) | set(PARROT) <= existing
    assert len({path for _, path in existing}) > 40, "the routes of all APIs"


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"x-api-key": "wrong"}])
async def test_every_other_route_answers_401(headers: dict[str, str]) -> None:
    async with gateway(api_key=[KEY]) as running, aiohttp.ClientSession(running.address) as http:
        for method, route in closed(running):
            body = None if method in ("GET", "HEAD", "TRACE") else {"model": MODEL, "input": "x"}
            status, found, content = await ask(http, method, running.path(route), headers=headers, json=body)
            assert status == 401, f"{method} {route}"
            assert not leaks(status, found, content), f"{method} {route}"
            assert {name.lower() for name in found} <= HEADERS | {"request-id"}, f"{method} {route}"
            if method != "HEAD" and not headers and not route.startswith("/v1/messages"):
                assert json.loads(content) == MISSING, f"{method} {route}"


async def test_the_open_routes_answer_without_a_key() -> None:
    async with gateway(api_key=[KEY]) as running, aiohttp.ClientSession(running.address) as http:
        for (method, route), expected in OPEN.items():
            for each in (method, "HEAD"):
                status, headers, body = await ask(http, each, route)
                assert status == expected, f"{each} {route}"
                if route not in ("/metrics", "/openapi.json"):  # these show names of models, and the version
                    assert not leaks(status, headers, body), f"{each} {route}"
        document = (await ask(http, "GET", "/openapi.json"))[2].decode()
        assert not [secret for secret in (KEY, MODEL, SESSION, VARIABLE, VALUE) if secret in document]


async def test_parrots_routes_need_the_key_or_a_session_in_the_body() -> None:
    session = {"session_id": 1234567, "session_auth": "wrong"}
    bodies: dict[tuple[str, str], Any] = {
        ("POST", "/v1/session"): {"api_key": "wrong"},
        ("GET", "/v1/session/{id}"): {"session_auth": "wrong"},
        ("DELETE", "/v1/session/{id}"): {"session_auth": "wrong"},
        ("POST", "/v1/semantic_call"): {**session, "template": "x", "parameters": []},
        ("POST", "/v1/semantic_var"): {**session, "var_name": "x"},
        ("POST", "/v1/semantic_var/{id}"): {**session, "content": "x"},
        ("POST", "/v1/py_native_call"): {},
    }
    async with gateway(api_key=[KEY]) as running, aiohttp.ClientSession(running.address) as http:
        for (method, route), expected in PARROT.items():
            status, headers, content = await ask(
                http, method, running.path(route), json=bodies.get((method, route), session)
            )
            assert status == expected, f"{method} {route} {content!r}"
            assert not leaks(status, headers, content), f"{method} {route}"


async def test_options_shows_only_methods() -> None:
    page = "https://page.example"
    preflight = {"Origin": page, "Access-Control-Request-Method": "POST"}
    running_gateway = gateway(api_key=[KEY], cors_origin=[page])
    async with running_gateway as running, aiohttp.ClientSession(running.address) as http:
        for path in dict.fromkeys(path for _, path in running.routes):
            for headers in ({}, preflight):
                status, found, body = await ask(http, "OPTIONS", running.path(path), headers=headers)
                assert (status, body) == (204, b""), path
                assert not leaks(status, found, body), path


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/v1",
        "/v1/nothing",
        "/v1/models/",
        "//metrics",
        "/metrics/",
        "/METRICS",
        "/health/../v1/models",
        "/health/%2e%2e/v1/models",
        "/health%2f..%2fv1%2fmodels",
        "/health/ready/x",
        "/openapi.json/x",
        "/ui/../v1/models",
        "/%00",
        f"/v1/sessions/{SESSION}/nothing",
        "/nothing?key=" + KEY[:2],
    ],
)
async def test_unknown_paths_answer_401(path: str) -> None:
    async with gateway(api_key=[KEY]) as running, aiohttp.ClientSession() as http:
        for method in METHODS:
            url = URL(running.address + path, encoded=True)
            status, headers, body = await ask(http, method, url)
            assert status == 401, f"{method} {path}"
            assert not leaks(status, headers, body), f"{method} {path}"


async def test_a_websocket_is_not_opened_without_a_key() -> None:
    async with gateway(api_key=[KEY]) as running, aiohttp.ClientSession(running.address) as http:
        for path in dict.fromkeys(path for _, path in running.routes):
            if ("GET", path) in OPEN or ("GET", path) in PARROT:
                continue
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await http.ws_connect(running.path(path))
            assert refused.value.status == 401, path
        socket = await http.ws_connect("/v1/responses", headers={"Authorization": f"Bearer {KEY}"})
        await socket.close()
    async with gateway() as running, aiohttp.ClientSession(running.address) as http:
        await (await http.ws_connect("/v1/responses")).close()


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"GET /v1/models HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET http://x/v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /v1/models HTTP/1.0\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ],
)
async def test_unusual_http_shows_nothing(sent: bytes) -> None:
    async with gateway(api_key=[KEY]) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(running.address.rpartition(":")[2]))
        writer.write(sent)
        writer.write_eof()
        async with asyncio.timeout(10):
            answer = await reader.read()
        writer.close()
    status = re.match(rb"HTTP/1\.[01] (4\d\d) ", answer.replace(b"HTTP/1.1 102 Processing\r\n\r\n", b""))
    assert status is not None, answer
    assert not leaks(int(status[1]), {}, answer)


async def test_with_a_key_and_without_keys_the_routes_answer() -> None:
    """Otherwise a server that refuses everything would pass the other tests."""
    for keys, headers in (([KEY], {"Authorization": f"Bearer {KEY}"}), ([], {})):
        async with gateway(api_key=keys) as running, aiohttp.ClientSession(running.address, headers=headers) as http:
            for method, route in running.routes:
                body = None if method in ("GET", "HEAD") else {}
                status, _, content = await ask(http, method, running.path(route), json=body)
                if (method, route) != ("POST", "/v1/session"):  # the key is in the body
                    assert status not in (401, 405), f"{method} {route} {content!r}"
            assert MODEL in (await ask(http, "GET", "/v1/models"))[2].decode()


async def test_a_setting_closes_the_metrics() -> None:
    async with gateway(api_key=[KEY], open_metrics=False) as running, aiohttp.ClientSession(running.address) as http:
        for method in ("GET", "HEAD"):
            status, headers, body = await ask(http, method, "/metrics")
            assert status == 401
            assert not leaks(status, headers, body)
        status, _, body = await ask(http, "GET", "/metrics", headers={"x-api-key": KEY})
        assert (status, b"myna_calls_total" in body) == (200, True)
        document = json.loads((await ask(http, "GET", "/openapi.json"))[2])
        assert "401" in document["paths"]["/metrics"]["get"]["responses"], "the document says so as well"
    async with gateway(open_metrics=False) as running, aiohttp.ClientSession(running.address) as http:
        assert (await ask(http, "GET", "/metrics"))[0] == 200, "without API keys, every route is open"
