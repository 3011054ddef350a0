"""The gateway's own builder of graph calls, for tests without requests of clients."""

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from gateway.api.semantic.extension import text_of
from gateway.api.semantic.graph_calls import GraphCallBuilder
from gateway.app import build_app, build_services
from gateway.config.settings import ServeSettings
from gateway.engines.pool import EnginePool
from gateway.graph.call import CallSpec
from gateway.graph.events import NullSink
from gateway.graph.session import VariableSpec
from gateway.prompts.passthrough_builder import PassthroughPromptBuilder
from gateway.prompts.served_models import ServedModel
from gateway.server.storage import open_response_store


class SpecBuilder:
    """A gateway with a route that builds the calls of a graph and keeps them. It has an event loop of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._built: list[CallSpec] = []

    def __enter__(self) -> Self:
        self._loop.run_until_complete(self._start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.run_until_complete(self._stop())
        self._loop.close()

    def build(self, variables: dict[str, Any], calls: Sequence[Any]) -> tuple[list[CallSpec], list[VariableSpec]]:
        """Return the calls and the variables of a graph. Raises AssertionError if it is refused."""
        self._loop.run_until_complete(self._send({"variables": variables, "calls": calls}))
        return self._built, [VariableSpec(name, text_of(value)) for name, value in variables.items()]

    async def _start(self) -> None:
        settings = ServeSettings(journal="memory")
        self._store = await open_response_store(settings, None)
        self._services = build_services(settings, EnginePool(1.0), NullSink(), self._store)
        self._services.models.add(ServedModel("fake", 4096, None, None, PassthroughPromptBuilder()))
        app = build_app(settings, self._services)
        app.router.add_post("/test/specs", self._build)
        self._client = TestClient(TestServer(app))
        await self._client.start_server()

    async def _stop(self) -> None:
        await self._client.close()
        await self._services.scheduler.close()
        await self._store.close()

    async def _build(self, request: web.Request) -> web.Response:
        body = await request.json()
        builder = GraphCallBuilder(request, None, set(body["variables"]), 1_000)
        self._built = await builder.build_all(body["calls"])
        return web.Response()

    async def _send(self, body: Any) -> None:
        async with self._client.post("/test/specs", json=body) as answer:
            assert answer.status == 200, await answer.text()
