"""gateway/relay/embedder.py: limits, another attempt after a lost engine, and the end of a cancelled request."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from gateway.engines.local.client import EngineClient
from gateway.engines.pool import EnginePool
from gateway.engines.protocol import ContextRefused, EngineLost
from gateway.errors import RequestError
from gateway.relay import Embedder
from tests.fakes.engine import FakeEngine


class FakeClient(EngineClient):
    """An engine client whose texts end when the test allows it."""

    def __init__(self) -> None:
        super().__init__("fake", lambda: None)
        self._ready = True
        self.errors: list[Exception] = []
        self.go_on = asyncio.Event()
        self.open_count = self.most = 0

    def open(self, scope: str, urgency: Any) -> Any:
        return _Context(self)


class _Context:
    def __init__(self, engine: FakeClient) -> None:
        self._engine = engine
        engine.open_count += 1
        engine.most = max(engine.most, engine.open_count)

    async def embed(self, tokens: Sequence[int]) -> bytes:
        if self._engine.errors:
            raise self._engine.errors.pop(0)
        await asyncio.sleep(0)
        await self._engine.go_on.wait()
        return bytes(tokens)

    def free(self) -> None:
        self._engine.open_count -= 1


def embedder(*engines: Any, max_texts: int = 100) -> Embedder:
    pool = EnginePool(0.05)
    for engine in engines:
        pool.add("m", engine)
    return Embedder(pool, max_texts)


async def test_texts_keep_their_order_and_few_are_on_engines_at_a_time() -> None:
    engine = FakeClient()
    engine.go_on.set()
    texts = [[number] for number in range(200)]
    assert await embedder(engine, max_texts=200).embed("m", texts, "t") == [bytes(text) for text in texts]
    assert (engine.most, engine.open_count) == (64, 0)


async def test_a_lost_engine_gets_another_attempt() -> None:
    engine = FakeClient()
    engine.go_on.set()
    engine.errors = [EngineLost("gone")]
    assert await embedder(engine).embed("m", [[1]], "t") == [b"\x01"]
    engine.errors = [EngineLost("gone")] * 2
    with pytest.raises(RequestError) as failed:
        await embedder(engine).embed("m", [[1]], "t")
    assert (failed.value.status, failed.value.param) == (503, "input.0")
    engine.errors = [ContextRefused("context_length_exceeded", "too long")]
    with pytest.raises(RequestError) as failed:
        await embedder(engine).embed("m", [[1]], "t")
    assert failed.value.status == 400
    assert engine.open_count == 0


async def test_the_failure_of_a_text_and_a_disconnect_end_the_others() -> None:
    engine = FakeClient()
    engine.errors = [ContextRefused("bad_token", "no")]
    limited = embedder(engine, max_texts=3)
    with pytest.raises(RequestError):
        await limited.embed("m", [[1], [2], [3]], "t")
    assert engine.open_count == 0
    waiting = asyncio.create_task(limited.embed("m", [[1], [2]], "t"))
    await asyncio.sleep(0.01)
    assert engine.open_count == 2
    with pytest.raises(RequestError) as refused:
        await limited.embed("m", [[1], [2]], "t")
    assert refused.value.status == 429
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert engine.open_count == 0
    engine.go_on.set()
    assert len(await limited.embed("m", [[1], [2], [3]], "t")) == 3


async def test_other_engines_compute_no_embeddings() -> None:
    for engines in ((FakeEngine(),), ()):
        with pytest.raises(RequestError) as refused:
            await embedder(*engines).embed("m", [[1]], "t")
        assert refused.value.status in (400, 503)
