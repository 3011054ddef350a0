"""A gateway in this process, before a server that says what a test wants it to."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from engine.tokenizer import Tokenizer
from gateway.api.responses.background import BACKGROUND
from gateway.app import build_app, build_services
from gateway.config.settings import ServeSettings
from gateway.engines.openai.engine import OpenAIEngine
from gateway.engines.openai.upstream import Upstream, UpstreamConfig
from gateway.engines.pool import EnginePool
from gateway.graph.events import NullSink
from gateway.prompts.passthrough_builder import PassthroughPromptBuilder
from gateway.prompts.served_models import ServedModel
from gateway.prompts.template_builder import TemplatePromptBuilder
from gateway.server.storage import open_response_store
from tests.upstream import ScriptedServer

Client = TestClient[Any, Any]


@asynccontextmanager
async def gateway_before(
    server: ScriptedServer, tokenizer: Tokenizer | None = None, kind: str = "openai", **settings: Any
) -> AsyncIterator[tuple[Client, Callable[[], int]]]:
    """Yield a client of the gateway, and a function that counts unfinished calls.

    `tokenizer`: for a server that receives tokens.
    """
    told = ServeSettings(journal="memory", **settings)
    upstream = Upstream(UpstreamConfig("there", kind, server.url), lambda: None)
    await upstream.start()
    pool = EnginePool(1.0)
    pool.add("fake", OpenAIEngine("there", upstream, "fake", tokenizer))
    response_store = await open_response_store(told, None)
    services = build_services(told, pool, NullSink(), response_store)
    prompts = PassthroughPromptBuilder() if tokenizer is None else TemplatePromptBuilder(tokenizer)
    services.models.add(ServedModel("fake", 4096, None, tokenizer, prompts))
    app = build_app(told, services)
    await app[BACKGROUND].resume_all([])
    try:
        async with TestClient(TestServer(app)) as client:
            yield client, lambda: services.scheduler.unfinished_calls
    finally:
        await services.scheduler.close()
        await response_store.close()
        await upstream.close()


@pytest.fixture
async def there() -> AsyncIterator[tuple[Client, ScriptedServer, Callable[[], int]]]:
    """Yield a client of a gateway before an upstream server, that server, and a function that counts unfinished
    calls."""
    async with ScriptedServer() as server, gateway_before(server) as (client, unfinished):
        yield client, server, unfinished
