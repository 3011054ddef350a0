"""A server without a model: the gateway over a stub engine, or a bare handler that answers the same.

`python -m bench.overhead gateway|bare [settings of myna serve]` prints its address and serves until its input closes.
"""

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import uvloop
from aiohttp import web

from bench.stub import StubEngine
from engine.config import EngineConfig, default_cache
from engine.models.fetch import checkpoint_folder
from engine.tokenizer import Tokenizer
from gateway.app import build_app, build_services, listening, spare_collector
from gateway.engines.pool import EnginePool
from gateway.graph.events import Log, NoLog
from gateway.journal import FileStorage, Journal
from gateway.models import ServedModel
from gateway.prompt import PromptBuilder
from gateway.settings import ServeSettings, parse

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


def _gateway(settings: ServeSettings, log: Log) -> web.Application:
    pool = EnginePool(1.0)
    services = build_services(settings, pool, log)
    tokenizer = _tokenizer()
    pool.add("stub", StubEngine(tokenizer))
    services.models.add(ServedModel("stub", 8192, tokenizer.vocabulary, tokenizer, PromptBuilder(tokenizer)))
    return build_app(settings, services)


async def _bare(request: web.Request) -> web.Response:
    json.loads(await request.read())
    return web.json_response(_ANSWER)


async def _serve(kind: str, arguments: Sequence[str]) -> None:
    settings = parse(ServeSettings, ["--port", "0", *arguments], "bench.overhead")
    journal = None if (path := settings.journal_file()) is None else Journal(FileStorage(path))
    if kind == "gateway":
        app = _gateway(settings, journal or NoLog())
    else:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", _bare)
    async with listening(app, settings) as address:
        spare_collector()
        print(address, flush=True)
        await asyncio.to_thread(sys.stdin.read)
        if journal is not None:
            await journal.close()


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1], sys.argv[2:]))  # the loop that `myna serve` has
