"""gateway/app.py: the settings decide about limits, routes and keys of the application."""

from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from gateway.app import build_app, build_services, session_limits
from gateway.config.settings import ServeSettings
from gateway.engines.pool import EnginePool
from gateway.graph.errors import TooLarge
from gateway.graph.events import NullSink
from gateway.responses import MemoryDatabase, SqliteResponseStore


def built(**fields: Any) -> tuple[Any, Any]:
    """Return application and services of a gateway without engines."""
    settings = ServeSettings(journal="memory", engine_wait=0.1, **fields)
    store = SqliteResponseStore(MemoryDatabase(), 1 << 20, 60.0, owns=True)
    services = build_services(settings, EnginePool(0.1), NullSink(), store)
    return build_app(settings, services), services


async def status(app: Any, method: str, path: str, **options: Any) -> int:
    async with TestClient(TestServer(app)) as client, client.request(method, path, **options) as answer:
        return answer.status


def test_every_limit_of_a_session_is_a_setting() -> None:
    settings = ServeSettings(
        max_session_calls=1,
        max_session_variables=2,
        max_session_edges=3,
        max_value_bytes=4_000,
        max_session_bytes=5_000,
        max_depth=6,
        max_waiters=7,
    )
    limits = session_limits(settings)
    assert (limits.calls, limits.variables, limits.edges, limits.value_bytes) == (1, 2, 3, 4_000)
    assert (limits.bytes, limits.depth, limits.waiters) == (5_000, 6, 7)


def test_the_store_has_the_limits_of_the_settings() -> None:
    _, services = built(max_key_sessions=1)
    services.sessions.create("t", "a")
    with pytest.raises(TooLarge, match="this key has 1 sessions"):
        services.sessions.create("t", "b")


@pytest.mark.parametrize(("parrot_api", "expected"), [(False, 404), (True, 200)])
async def test_parrots_routes_exist_only_on_request(parrot_api: bool, expected: int) -> None:
    app, _ = built(parrot_api=parrot_api)
    assert await status(app, "POST", "/v1/session", json={}) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/health", 200), ("/metrics", 200), ("/openapi.json", 200), ("/v1/sessions", 401), ("/x", 401)],
)
async def test_open_routes_need_no_key(path: str, expected: int) -> None:
    app, _ = built(api_key=["secret"])
    assert await status(app, "GET", path) == expected


async def test_bodies_are_limited() -> None:
    app, _ = built(max_body_bytes=1_024)
    assert await status(app, "POST", "/v1/sessions", json={"metadata": {"k": "x" * 400}}) == 201
    app, _ = built(max_body_bytes=1_024)
    assert await status(app, "POST", "/v1/sessions", json={"metadata": {"k": "x" * 2_000}}) == 413


async def test_without_an_engine_the_server_is_not_ready() -> None:
    app, _ = built()
    assert await status(app, "GET", "/health/ready") == 503
