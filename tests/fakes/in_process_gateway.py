"""The gateway in the process of the test, in front of a scripted upstream server."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiohttp.test_utils import TestClient, TestServer

from engine.tokenizer import Tokenizer
from gateway.api.responses.background import BACKGROUND
from gateway.app import build_app, build_services
from gateway.config.settings import ServeSettings
from gateway.engines.anthropic import AnthropicEngine
from gateway.engines.openai.engine import OpenAIEngine
from gateway.engines.openai.tool_calls import MalformedCalls
from gateway.engines.openai.upstream import Upstream, UpstreamConfig
from gateway.engines.pool import EnginePool
from gateway.graph.events import NullSink
from gateway.prompts.passthrough_builder import PassthroughPromptBuilder
from gateway.prompts.served_models import ServedModel
from gateway.prompts.template_builder import TemplatePromptBuilder
from gateway.server.engine_factory import EngineFactory
from gateway.server.gap_saver import GapSaver
from gateway.server.storage import open_gap_store, open_journal_storage, open_ledger, open_response_store
from tests.fakes.scripted_server import ScriptedServer

GatewayClient = TestClient[Any, Any]
ScriptedGateway = tuple[GatewayClient, ScriptedServer, Callable[[], int]]
"""A client of the gateway, its upstream server, and a function that counts unfinished calls."""


@asynccontextmanager
async def gateway_before(
    server: ScriptedServer,
    tokenizer: Tokenizer | None = None,
    kind: str = "openai",
    malformed: MalformedCalls = MalformedCalls.REPAIR,
    **settings: Any,
) -> AsyncIterator[tuple[GatewayClient, Callable[[], int]]]:
    """Yield a client of the gateway, and a function that counts unfinished calls.

    `tokenizer`: for a server that receives tokens. With a `journal`, only learned durations are stored in it, no virtual
    keys.
    """
    chosen = ServeSettings(**{"journal": "memory", **settings})
    upstream = Upstream(UpstreamConfig("there", kind, server.url, malformed=malformed), lambda: None)
    await upstream.start()
    pool = EnginePool(1.0)
    engine = (
        AnthropicEngine("there", upstream, upstream.models[0])
        if kind == "anthropic"
        else OpenAIEngine("there", upstream, "fake", tokenizer)
    )
    pool.add("fake", engine)
    response_store = await open_response_store(chosen, None)
    ledger = await open_ledger(chosen, None)
    services = build_services(chosen, pool, NullSink(), response_store, ledger=ledger)
    storage = await open_journal_storage(chosen)
    saver = None
    if (gap_store := open_gap_store(storage)) is not None and services.programs is not None:
        is_gone = services.accounts.is_gone if chosen.admin_keys() else lambda tenant: False
        saver = GapSaver(gap_store, services.programs, is_gone)
        await saver.restore()  # before the first request, so that tests need not wait for it
        saver.start()
    prompts = PassthroughPromptBuilder() if tokenizer is None else TemplatePromptBuilder(tokenizer)
    services.models.add(ServedModel("fake", 4096, tokenizer and tokenizer.vocabulary, tokenizer, prompts))
    app = build_app(chosen, services)
    await app[BACKGROUND].resume_all([])
    services.tools.start()
    try:
        async with TestClient(TestServer(app)) as client:
            yield client, lambda: services.scheduler.unfinished_calls
    finally:
        if saver is not None:
            await saver.close()
        await services.scheduler.close()
        await services.tools.close()
        if ledger is not None:
            await ledger.close()
        await response_store.close()
        await upstream.close()
        if storage is not None:
            await storage.close()


@asynccontextmanager
async def gateway_of(engines: Sequence[Any], **settings: Any) -> AsyncIterator[GatewayClient]:
    """Yield a client of a gateway with these engines, as the settings name them."""
    chosen = ServeSettings(journal="memory", engine=list(engines), **settings)
    pool = EnginePool(1.0)
    factory = EngineFactory(chosen, pool)
    await factory.start()
    response_store = await open_response_store(chosen, None)
    ledger = await open_ledger(chosen, None)
    services = build_services(chosen, pool, NullSink(), response_store, ledger=ledger)
    for model in factory.models:
        services.models.add(model)
    services.models.set_aliases(chosen.aliases(), chosen.fallbacks())
    try:
        async with TestClient(TestServer(build_app(chosen, services), handler_cancellation=True)) as client:
            yield client
    finally:
        await services.scheduler.close()
        if ledger is not None:
            await ledger.close()
        await response_store.close()
        await factory.close()
