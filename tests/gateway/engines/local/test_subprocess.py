"""gateway/engines/local/subprocess.py and engine/server/worker.py: a real process with a tiny model."""

import asyncio
import dataclasses
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import psutil
import pytest
from prometheus_client import REGISTRY

from engine.config import EngineConfig
from engine.protocol import FrameBuffer, Step
from engine.protocol import SamplingParams as LinkSampling
from gateway.engines.local.client import EngineStartFailed
from gateway.engines.local.subprocess import SubprocessEngine
from gateway.engines.pool import EnginePool
from gateway.engines.protocol import ContextEvent, EngineLost, TokenDelta
from gateway.graph.call import SamplingParams
from tests.checkpoints import write_tiny_llama
from tests.gateway.engines.asking import LONG, SOON, coming, generated, read, text, until


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    return EngineConfig(model=str(write_tiny_llama(tmp_path_factory.mktemp("tiny"), window=512)), kv_tokens=2048)


@pytest.fixture
async def embedded(config: EngineConfig) -> AsyncIterator[SubprocessEngine]:
    engine = SubprocessEngine("test", config, lambda: None)
    await engine.start()
    yield engine
    await engine.close()


async def test_what_is_said_in_one_turn_goes_in_one_piece(
    embedded: SubprocessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = embedded._writer
    assert writer is not None
    write, pieces = writer.write, list[bytes]()

    def written(data: bytes) -> None:
        pieces.append(data)
        write(data)

    monkeypatch.setattr(writer, "write", written)
    context = embedded.open("", SOON)
    context.fill([1, 2, 3])
    context.fill([4, 5])
    told: list[ContextEvent] = []
    await context.generate(SamplingParams(max_tokens=2), told.append)
    assert isinstance(told[-1], TokenDelta)
    assert [len(list(FrameBuffer().feed(piece))) for piece in pieces] == [3]
    context.free()
    other = embedded.open("", SOON)
    other.fill([6])
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [len(list(FrameBuffer().feed(piece))) for piece in pieces] == [3, 2], "what is said later goes later"
    other.free()


async def test_a_killed_process_is_noticed_and_replaced(embedded: SubprocessEngine) -> None:
    assert embedded.pid is not None
    first = embedded.pid
    context = embedded.open("", SOON)
    context.fill([1, 2, 3])
    stream = coming(context, LONG)
    await anext(stream)
    os.kill(first, signal.SIGKILL)
    with pytest.raises(EngineLost, match="was lost while it worked"):
        while True:
            await anext(stream)
    context.free()
    assert not embedded.ready
    with pytest.raises(EngineLost, match="is not running"):
        embedded.open("", SOON)
    await until(lambda: embedded.ready)
    assert embedded.pid != first
    assert embedded.restarts == 1
    assert await read(embedded, SamplingParams(max_tokens=1))
    with pytest.raises(EngineLost):
        context.fill([4])  # half a prompt must not go on in the new process


async def test_a_process_that_dies_in_the_middle_of_a_frame(
    config: EngineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MYNA_TEST_DIED", str(tmp_path / "died"))
    monkeypatch.setattr("gateway.engines.local.subprocess._WORKER", "tests.gateway.engines.dying_worker")
    engine = SubprocessEngine("test", config, lambda: None)
    await engine.start()
    with pytest.raises(EngineLost, match="was lost while it worked"):
        await read(engine, LONG)
    assert (tmp_path / "died").exists()
    await until(lambda: engine.ready)
    assert generated(await read(engine, SamplingParams(max_tokens=4, ignore_eos=True))) == 4, "half a frame is nothing"
    await engine.close()


async def test_a_process_that_dies_while_it_fills(embedded: SubprocessEngine) -> None:
    context = embedded.open("", SOON)
    assert embedded.pid is not None
    os.kill(embedded.pid, signal.SIGSTOP)  # so that the fill is under way and not done
    context.fill([1] * 300)
    stream = coming(context, LONG)
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    os.kill(embedded.pid, signal.SIGKILL)
    with pytest.raises(EngineLost):
        await waiting
    await until(lambda: embedded.ready)
    assert await read(embedded, SamplingParams(max_tokens=1))


async def test_a_hung_process_is_killed_and_an_idle_one_is_not(config: EngineConfig) -> None:
    engine = SubprocessEngine("test", config, lambda: None, hang_seconds=0.8)
    await engine.start()
    assert engine.pid is not None
    first = engine.pid
    await read(engine, SamplingParams(max_tokens=3))
    await asyncio.sleep(2.0)  # with nothing to do, silence is right
    assert engine.pid == first
    os.kill(first, signal.SIGSTOP)
    with pytest.raises(EngineLost):
        await read(engine, LONG)
    await until(lambda: engine.ready)
    assert engine.pid != first
    await engine.close()


async def test_a_dead_engine_is_waited_for(config: EngineConfig) -> None:
    pool = EnginePool(wait_seconds=30.0)
    engine = SubprocessEngine("test", config, pool.changed)
    await engine.start()
    pool.add("m", engine)
    assert pool.ready
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)
    await until(lambda: not engine.ready)
    assert list(await pool.serving("m")) == [engine]
    assert engine.ready
    await engine.close()


async def test_an_idle_engine_uses_no_cpu(embedded: SubprocessEngine) -> None:
    await read(embedded, SamplingParams(max_tokens=3))
    process = psutil.Process(embedded.pid)
    async with asyncio.timeout(20):  # OpenMP's threads spin for a moment before they sleep
        while True:
            before = process.cpu_times()
            await asyncio.sleep(1.0)
            after = process.cpu_times()
            if after.user + after.system == before.user + before.system:
                break


async def test_closing_ends_the_process(config: EngineConfig) -> None:
    engine = SubprocessEngine("test", config, lambda: None)
    await engine.start()
    assert engine.pid is not None
    process = psutil.Process(engine.pid)
    await engine.close()
    assert not process.is_running()


async def test_a_model_that_cannot_be_had_says_why(tmp_path: Path) -> None:
    engine = SubprocessEngine("test", EngineConfig(model=str(tmp_path)), lambda: None)
    with pytest.raises(EngineStartFailed, match=r"no config\.json"):
        await engine.start()
    await engine.close()


def test_the_domain_and_the_link_say_the_same_of_sampling() -> None:
    domain = {field.name: getattr(SamplingParams(), field.name) for field in dataclasses.fields(SamplingParams)}
    assert domain.pop("given") == ()
    assert {name: getattr(LinkSampling(), name) for name in LinkSampling.__struct_fields__} == domain


async def test_a_process_that_was_begun_is_the_one_that_serves(config: EngineConfig) -> None:
    engine, others = SubprocessEngine("test", config, lambda: None), set(psutil.Process().children())
    await engine.begin()
    [child] = set(psutil.Process().children()) - others
    await engine.start()
    assert engine.pid == child.pid
    os.kill(child.pid, signal.SIGKILL)
    await until(lambda: not engine.ready)
    await until(lambda: engine.ready)
    assert engine.pid != child.pid, "and only the first"
    await engine.close()


async def test_a_process_that_was_begun_for_nothing_ends(config: EngineConfig) -> None:
    engine, others = SubprocessEngine("test", config, lambda: None), set(psutil.Process().children())
    await engine.begin()
    [child] = set(psutil.Process().children()) - others
    await engine.close()
    assert not child.is_running()
    await engine.close()


async def test_drafts_are_counted(config: EngineConfig) -> None:
    engine = SubprocessEngine("drafts", msgspec.structs.replace(config, speculation="on"), lambda: None)
    await engine.start()
    try:
        first = text(await read(engine, SamplingParams(max_tokens=40, temperature=0, ignore_eos=True)))
        again = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True, prediction=first)
        assert text(await read(engine, again)) == first
    finally:
        await engine.close()
    assert sum(drafted("drafts")) > 0


def drafted(engine: str) -> list[float]:
    """Tokens that were right, and wrong."""
    name = "myna_draft_tokens_total"
    samples = [REGISTRY.get_sample_value(name, {"engine": engine, "result": result}) for result in ("right", "wrong")]
    return [sample or 0.0 for sample in samples]


def test_drafts_are_counted_from_the_first_report_of_a_link_on(config: EngineConfig) -> None:
    engine = SubprocessEngine("counted", config, lambda: None)
    for told in ((100, 70), (110, 74), (110, 74), (113, 77)):
        engine.hear(Step([], 0, 0, 0, 0.001, 0.01, *told))
    assert drafted("counted") == [7, 6]
