"""A server without a model: the gateway over a stub engine, or a bare handler with the same answers.

`python -m bench.overhead gateway|bare [settings of myna serve]` prints its address and serves until its input closes.
"""

import asyncio
import json
import ssl
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import torch
import uvloop
from aiohttp import web

from engine.config import EngineConfig, default_cache
from engine.models.fetch import checkpoint_folder
from engine.tokenizer import Tokenizer
from gateway.app import build_app, build_cluster, build_services
from gateway.config.settings import ServeSettings, parse
from gateway.engines.pool import EnginePool
from gateway.graph.events import NullSink
from gateway.journal import FileStorage, Journal, PostgresStorage
from gateway.prompts.served_models import ServedModel
from gateway.prompts.template_builder import TemplatePromptBuilder
from gateway.server.gc_tuning import GcTuner
from gateway.server.listener import listening
from gateway.server.storage import open_response_store
from tests.fakes.engine import FakeEngine

_ANSWER = {
    "id": "chatcmpl-0",
    "object": "chat.completion",
    "created": 0,
    "model": "stub",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "1"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}


def _tokenizer() -> Tokenizer:
    return Tokenizer(checkpoint_folder(EngineConfig().model, Path(default_cache()), torch.bfloat16))


async def _gateway(settings: ServeSettings, stack: AsyncExitStack) -> str:
    """Serve until the stack is closed. Return the address."""
    pool = EnginePool(1.0)
    url, path = settings.journal_url(), settings.journal_file()
    storage: FileStorage | PostgresStorage | None = None
    if url is not None:
        storage = PostgresStorage(url, settings.lease, lambda: sys.exit("bench.overhead: taken for dead"))
        await storage.start()
    elif path is not None:
        storage = FileStorage(path)
    journal = None if storage is None else Journal(storage)
    response_store = await open_response_store(settings, storage)
    services = build_services(settings, pool, journal or NullSink(), response_store)
    tokenizer = _tokenizer()
    pool.add("stub", FakeEngine(tokenizer))
    services.models.add(
        ServedModel("stub", 8192, tokenizer.vocabulary, tokenizer, TemplatePromptBuilder(tokenizer, 8192))
    )
    if journal is None or not isinstance(storage, PostgresStorage):
        address = await stack.enter_async_context(listening(build_app(settings, services), settings))
        if journal is not None:
            stack.push_async_callback(journal.close)
        stack.push_async_callback(response_store.close)
        return address
    resume = services.scheduler.resume
    membership, forwarding = build_cluster(settings, services, storage, journal, resume, ssl.create_default_context())
    await forwarding.start()
    stack.push_async_callback(forwarding.close)
    app = build_app(settings, services, forwarding.middleware)
    address = await stack.enter_async_context(listening(app, settings))
    stack.push_async_callback(journal.close)
    stack.push_async_callback(membership.close)
    await membership.join(address, "bench")
    return address


async def _bare(request: web.Request) -> web.Response:
    json.loads(await request.read())
    return web.json_response(_ANSWER)


async def _serve(kind: str, arguments: Sequence[str]) -> None:
    settings = parse(ServeSettings, ["--port", "0", *arguments], "bench.overhead")
    async with AsyncExitStack() as stack:
        if kind == "gateway":
            address = await _gateway(settings, stack)
        else:
            app = web.Application()
            app.router.add_post("/v1/chat/completions", _bare)
            address = await stack.enter_async_context(listening(app, settings))
        GcTuner().start()
        print(address, flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1], sys.argv[2:]))  # the event loop of `myna serve`
