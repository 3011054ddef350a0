"""Embeddings that engines of this project compute."""

import asyncio
import time
from collections.abc import Sequence

from gateway.engines.local.client import EngineClient
from gateway.engines.protocol import ContextRefused, EngineFailure, EngineLost, Engines, Urgency
from gateway.errors import RequestError, field_path
from gateway.graph.limits import SharedLimit
from gateway.relay.relay import as_request_error

_ATTEMPTS = 2
"""Maximum number of attempts for a text whose engine was lost."""
_PARALLEL = 64
"""Maximum number of texts of one request that are on engines at a time."""
_RANK_SECONDS = 0.01
"""Delay of a text in the order of an engine, in seconds, for each unfinished text of its tenant."""


class Embedder:
    """Owner of the texts whose embeddings are not computed yet."""

    def __init__(self, engines: Engines, max_texts: int, *, several_tenants: bool = False) -> None:
        """`max_texts`: maximum number of unfinished texts. `several_tenants`: whether there can be more than one
        tenant."""
        self._engines = engines
        self._limit = SharedLimit(max_texts, several=several_tenants)

    async def embed(self, model: str, texts: Sequence[Sequence[int]], tenant: str) -> list[bytes]:
        """Return the embedding of each text, in float32. `texts`: tokens.

        If the caller is cancelled, the engines drop the texts. Raises RequestError.
        """
        if not self._limit.has_room(tenant, len(texts)):
            count = self._limit.amount(tenant)
            message = f"{count} texts of this key have no embedding yet; with {len(texts)} more, there are too many"
            raise RequestError(429, message, code="overloaded")
        self._limit.add(tenant, len(texts))
        places = asyncio.Semaphore(_PARALLEL)
        start = time.monotonic() + _RANK_SECONDS * self._limit.amount(tenant)
        tasks = [
            asyncio.ensure_future(self._embed_one(model, index, text, tenant, start, places))
            for index, text in enumerate(texts)
        ]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._limit.remove(tenant, len(texts))

    async def _embed_one(
        self, model: str, index: int, text: Sequence[int], tenant: str, rank: float, places: asyncio.Semaphore
    ) -> bytes:
        async with places:
            for attempt in range(_ATTEMPTS):
                try:
                    return await self._attempt(model, text, tenant, Urgency(rank, interactive=False))
                except EngineFailure as error:
                    if not isinstance(error, EngineLost) or attempt == _ATTEMPTS - 1:
                        failure = as_request_error(error)
                        failure.param = failure.param or field_path("input", str(index))
                        raise failure from error
                    await asyncio.sleep(error.pause)
        raise AssertionError("the last attempt returns or raises")

    async def _attempt(self, model: str, text: Sequence[int], tenant: str, urgency: Urgency) -> bytes:
        engines = await self._engines.find_ready(model)
        able = [engine for engine in engines if isinstance(engine, EngineClient)]
        if not able:
            message = f"no engine of the model {model!r} computes embeddings"
            raise ContextRefused("unsupported_by_engine", message, "model")
        context = min(able, key=lambda engine: engine.load).open(tenant, urgency)
        try:
            return await context.embed(text)
        finally:
            context.free()
