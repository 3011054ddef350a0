"""gateway/engines/local/subprocess.py and engine/server/worker.py: a real process with a tiny model."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import psutil
import pytest
from prometheus_client import REGISTRY

from engine.config import EngineConfig
from engine.protocol import FrameBuffer, StepReport
from engine.sampling_params import SamplingParams
from gateway.engines.local.client import EngineStartFailed
from gateway.engines.local.subprocess import SubprocessEngine
from gateway.engines.pool import EnginePool
from gateway.engines.protocol import ContextEvent, EngineLost, TokenDelta
from tests.fakes.checkpoints import write_tiny_llama
from tests.gateway.engines.generation import LONG, URGENT, read_events, stream_events, text, token_count_of, until

pytestmark = pytest.mark.waits


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    return EngineConfig(model=str(write_tiny_llama(tmp_path_factory.mktemp("tiny"), window=512)), kv_tokens=2048)


@pytest.fixture
async def engine_process(config: EngineConfig) -> AsyncIterator[SubprocessEngine]:
    engine = SubprocessEngine("test", config, lambda: None)
    await engine.start()
    yield engine
    await engine.close()


async def test_commands_of_one_turn_are_written_together(
    engine_process: SubprocessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = engine_process._writer
    assert writer is not None
    write, pieces = writer.write, list[bytes]()

    def record_write(data: bytes) -> None:
        pieces.append(data)
        write(data)

    monkeypatch.setattr(writer, "write", record_write)
    context = engine_process.open("", URGENT)
    context.fill([1, 2, 3])
    context.fill([4, 5])
    reports: list[ContextEvent] = []
    await context.generate(SamplingParams(max_tokens=2), reports.append)
    assert isinstance(reports[-1], TokenDelta)
    assert [len(list(FrameBuffer().feed(piece))) for piece in pieces] == [3]
    context.free()
    other = engine_process.open("", URGENT)
    other.fill([6])
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [len(list(FrameBuffer().feed(piece))) for piece in pieces] == [3, 2], "later commands are written later"
    other.free()


async def test_a_killed_process_is_replaced(engine_process: SubprocessEngine) -> None:
    assert engine_process.pid is not None
    first = engine_process.pid
    context = engine_process.open("", URGENT)
    context.fill([1, 2, 3])
    stream = stream_events(context, LONG)
    await anext(stream)
    os.kill(first, signal.SIGKILL)
    with pytest.raises(EngineLost, match="was lost while it worked"):
        while True:
            await anext(stream)
    context.free()
    assert not engine_process.is_ready
    with pytest.raises(EngineLost, match="is not running"):
        engine_process.open("", URGENT)
    await until(lambda: engine_process.is_ready)
    assert engine_process.pid != first
    assert engine_process.restarts == 1
    assert await read_events(engine_process, SamplingParams(max_tokens=1))
    with pytest.raises(EngineLost):
        context.fill([4])  # the second half of a prompt must not reach the new process


async def test_a_process_that_dies_in_the_middle_of_a_frame(
    config: EngineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MYNA_TEST_DIED", str(tmp_path / "died"))
    monkeypatch.setattr("gateway.engines.local.subprocess._WORKER", "tests.gateway.engines.dying_worker")
    engine = SubprocessEngine("test", config, lambda: None)
    await engine.start()
    with pytest.raises(EngineLost, match="was lost while it worked"):
        await read_events(engine, LONG)
    assert (tmp_path / "died").exists()
    await until(lambda: engine.is_ready)
    assert token_count_of(await read_events(engine, SamplingParams(max_tokens=4, ignore_eos=True))) == 4, (
        "half a frame is ignored"
    )
    await engine.close()


async def test_a_process_that_dies_while_it_fills(engine_process: SubprocessEngine) -> None:
    context = engine_process.open("", URGENT)
    assert engine_process.pid is not None
    os.kill(engine_process.pid, signal.SIGSTOP)  # so that the fill is sent but not processed
    context.fill([1] * 300)
    stream = stream_events(context, LONG)
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    os.kill(engine_process.pid, signal.SIGKILL)
    with pytest.raises(EngineLost):
        await waiting
    await until(lambda: engine_process.is_ready)
    assert await read_events(engine_process, SamplingParams(max_tokens=1))


async def test_a_hung_process_is_killed_and_an_idle_one_is_not(config: EngineConfig) -> None:
    engine = SubprocessEngine("test", config, lambda: None, hang_seconds=0.8)
    await engine.start()
    assert engine.pid is not None
    first = engine.pid
    await read_events(engine, SamplingParams(max_tokens=3))
    await asyncio.sleep(2.0)  # an idle engine may be silent
    assert engine.pid == first
    os.kill(first, signal.SIGSTOP)
    with pytest.raises(EngineLost):
        await read_events(engine, LONG)
    await until(lambda: engine.is_ready)
    assert engine.pid != first
    await engine.close()


async def test_calls_wait_for_an_engine_that_restarts(config: EngineConfig) -> None:
    pool = EnginePool(wait_seconds=30.0)
    engine = SubprocessEngine("test", config, pool.notify_change)
    await engine.start()
    pool.add("m", engine)
    assert pool.is_ready
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)
    await until(lambda: not engine.is_ready)
    assert list(await pool.find_ready("m")) == [engine]
    assert engine.is_ready
    await engine.close()


async def test_an_idle_engine_uses_no_cpu(engine_process: SubprocessEngine) -> None:
    await read_events(engine_process, SamplingParams(max_tokens=3))
    process = psutil.Process(engine_process.pid)
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


async def test_a_missing_model_is_reported(tmp_path: Path) -> None:
    engine = SubprocessEngine("test", EngineConfig(model=str(tmp_path)), lambda: None)
    with pytest.raises(EngineStartFailed, match=r"no config\.json"):
        await engine.start()
    await engine.close()


async def test_start_uses_the_process_that_begin_started(config: EngineConfig) -> None:
    engine, others = SubprocessEngine("test", config, lambda: None), set(psutil.Process().children())
    await engine.launch()
    [child] = set(psutil.Process().children()) - others
    await engine.start()
    assert engine.pid == child.pid
    os.kill(child.pid, signal.SIGKILL)
    await until(lambda: not engine.is_ready)
    await until(lambda: engine.is_ready)
    assert engine.pid != child.pid, "only the first process comes from `launch`"
    await engine.close()


async def test_closing_ends_a_process_that_only_begin_started(config: EngineConfig) -> None:
    engine, others = SubprocessEngine("test", config, lambda: None), set(psutil.Process().children())
    await engine.launch()
    [child] = set(psutil.Process().children()) - others
    await engine.close()
    assert not child.is_running()
    await engine.close()


async def test_drafts_are_counted(config: EngineConfig) -> None:
    engine = SubprocessEngine("drafts", msgspec.structs.replace(config, speculation="on"), lambda: None)
    await engine.start()
    try:
        first = text(await read_events(engine, SamplingParams(max_tokens=40, temperature=0, ignore_eos=True)))
        again = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True, prediction=first)
        assert text(await read_events(engine, again)) == first
    finally:
        await engine.close()
    assert sum(drafted("drafts")) > 0


def drafted(engine: str) -> list[float]:
    """Return the numbers of accepted and rejected draft tokens."""
    name = "myna_draft_tokens_total"
    samples = [REGISTRY.get_sample_value(name, {"engine": engine, "result": result}) for result in ("right", "wrong")]
    return [sample or 0.0 for sample in samples]


def test_drafts_are_counted_from_the_first_report_of_a_connection(config: EngineConfig) -> None:
    engine = SubprocessEngine("counted", config, lambda: None)
    for reports in ((100, 70), (110, 74), (110, 74), (113, 77)):
        engine.on_step(StepReport([], 0, 0, 0, 0.001, 0.01, *reports))
    assert drafted("counted") == [7, 6]
