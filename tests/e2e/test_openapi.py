"""GET /openapi.json, and requests generated from it: all statuses and answers are as documented."""

from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import pytest
import schemathesis
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import (
    content_type_conformance,
    not_a_server_error,
    response_schema_conformance,
    status_code_conformance,
)

from gateway.api import live_page
from gateway.app import build_app, build_services
from gateway.config.settings import ServeSettings
from gateway.engines.pool import EnginePool
from gateway.graph.events import NullSink
from gateway.http.openapi import PATH, document
from gateway.responses import MemoryDatabase, SqliteResponseStore
from tests.fakes.checkpoints import write_tiny_llama
from tests.fakes.gateway_harness import GatewayHarness

CHECKS = [content_type_conformance, not_a_server_error, response_schema_conformance, status_code_conformance]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayHarness]:
    tiny = write_tiny_llama(tmp_path_factory.mktemp("tiny"), window=96)
    with GatewayHarness("--model", str(tiny), "--parrot-api", "--journal", "memory", "--max-wait", "1") as server:
        yield server


@pytest.fixture(scope="module")
def model(small: GatewayHarness) -> str:
    return str(httpx.get(f"{small.address}/v1/models").json()["data"][0]["id"])


def operations() -> list[Any]:
    """Return the operations of the document, which does not need a running server."""
    settings = ServeSettings(parrot_api=True, journal="memory")
    app = build_app(
        settings,
        build_services(settings, EnginePool(1.0), NullSink(), SqliteResponseStore(MemoryDatabase(), 0, 1.0, owns=True)),
    )
    assert all(route.resource is not None for route in app.router.routes())
    undescribed = {PATH, *live_page.OPEN_ROUTES}
    described = document([route for route in app.router.routes() if route.resource.canonical not in undescribed], set())  # type: ignore[union-attr]
    return [result.ok() for result in schemathesis.openapi.from_dict(described).get_all_operations()]


@pytest.mark.parametrize("operation", operations(), ids=lambda operation: operation.label)
def test_answers_are_as_described(operation: Any, small: GatewayHarness, model: str) -> None:
    # bodies get an existing model and a small length, so that the other fields are tested

    with httpx.Client(base_url=f"{small.address}/v1") as http:  # generated ids may be those of sessions with events
        for session in http.get("/sessions").json()["data"]:
            http.delete(f"/sessions/{session['id']}")

    @given(case=operation.as_strategy())
    @settings(max_examples=60, derandomize=True, suppress_health_check=list(HealthCheck))
    def check(case: Any) -> None:
        if isinstance(case.body, dict):
            if "model" in case.body:
                case.body["model"] = model
            for length in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
                if isinstance(case.body.get(length), int):
                    case.body[length] = min(case.body[length], 8)
        case.call_and_validate(base_url=small.address, checks=CHECKS, timeout=30)

    check()


def test_the_document_is_complete(small: GatewayHarness) -> None:
    described = httpx.get(f"{small.address}/openapi.json").json()
    assert described["openapi"].startswith("3.1")
    chat = described["paths"]["/v1/chat/completions"]["post"]
    body = described["components"]["schemas"]["ChatCompletionRequest"]
    assert {"messages", "model", "semantic", "tools"} <= set(body["properties"])
    assert chat["responses"]["200"]["content"].keys() == {"application/json", "text/event-stream"}
    names = [operation["operationId"] for path in described["paths"].values() for operation in path.values()]
    assert len(set(names)) == len(names)


def test_a_route_without_a_description_is_detected() -> None:
    async def silent(request: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.router.add_get("/silent", silent)
    with pytest.raises(KeyError):
        document(app.router.routes())
