"""gateway/engines/pool.py"""

import asyncio

import pytest

from gateway.engines.pool import EnginePool
from gateway.engines.protocol import NoEngine
from tests.fakes.engine import FakeEngine


async def test_serving_returns_the_ready_engines_of_the_model() -> None:
    pool = EnginePool(1.0)
    assert not pool.is_ready
    one, two, other = FakeEngine(name="one"), FakeEngine(name="two"), FakeEngine(name="other")
    pool.add("m", one)
    pool.add("m", two)
    pool.add("n", other)
    two.is_ready = False
    assert await pool.find_ready("m") == [one]
    assert pool.is_ready
    other.is_ready = False
    assert not pool.is_ready, "a model without an engine"


async def test_serving_waits_for_an_engine_that_restarts() -> None:
    pool, engine = EnginePool(30.0), FakeEngine()
    engine.is_ready = False
    pool.add("m", engine)
    waiting = asyncio.create_task(pool.find_ready("m"))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    assert not waiting.done()
    engine.is_ready = True
    pool.notify_change()
    assert await waiting == [engine]


async def test_the_wait_for_an_engine_is_limited() -> None:
    pool = EnginePool(0.01)
    with pytest.raises(NoEngine, match="no engine for m was ready"):
        await pool.find_ready("m")


def test_each_engine_is_described_once_with_all_its_models() -> None:
    pool, one, two = EnginePool(1.0), FakeEngine(name="one"), FakeEngine(name="two")
    pool.add("m", one)
    pool.add("n", one)
    pool.add("n", two)
    two.is_ready = False
    described = [(engine.name, engine.is_ready, models) for engine, models in pool.describe()]
    assert described == [("one", True, ["m", "n"]), ("two", False, ["n"])]
