"""gateway/server/shutdown.py: signals, the drain, and the end of a process that hangs."""

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from gateway.scheduler import Stopping
from gateway.server.shutdown import drain, run_unless_stopped, stop_on_signals
from tests.gateway.scheduler.scheduler_harness import SchedulerHarness, settle


async def test_signals_set_the_event_and_ignored_ones_do_not() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = asyncio.Event()
    try:
        stop_on_signals(stop)
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0.05)
        assert not stop.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(5):
            await stop.wait()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(number)
        signal.signal(signal.SIGHUP, before)


async def test_work_that_ends_first_is_done() -> None:
    async def work() -> None:
        await asyncio.sleep(0)

    assert await run_unless_stopped(asyncio.Event(), work())


async def test_work_is_cancelled_by_a_stop() -> None:
    cancelled = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()

    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(0.01, stop.set)
    assert not await run_unless_stopped(stop, work())
    async with asyncio.timeout(5):
        await cancelled.wait()


async def test_an_error_of_the_work_is_raised() -> None:
    async def work() -> None:
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        await run_unless_stopped(asyncio.Event(), work())


async def test_an_idle_scheduler_is_drained_at_once_and_admits_nothing() -> None:
    harness = SchedulerHarness()
    stop = asyncio.Event()
    stop.set()
    async with asyncio.timeout(1):
        await drain(harness.scheduler, 60.0, stop)
    with pytest.raises(Stopping):
        harness.scheduler.admit("tenant", continues=False)


async def test_running_calls_may_finish() -> None:
    harness = SchedulerHarness()
    harness.engine.hold()
    call = harness.run(output="a")
    await settle()
    draining = asyncio.create_task(drain(harness.scheduler, 60.0, asyncio.Event()))
    await settle()
    assert not draining.done()
    harness.engine.released.set()
    async with asyncio.timeout(5):
        await draining
    assert call.output.value == "2"


@pytest.mark.parametrize("by_signal", [False, True])
async def test_the_drain_ends_after_its_time_or_at_a_second_signal(by_signal: bool) -> None:
    harness = SchedulerHarness()
    harness.engine.hold()
    harness.run(output="a")
    await settle()
    stop = asyncio.Event()
    stop.set()  # by the first signal
    draining = asyncio.create_task(drain(harness.scheduler, 60.0 if by_signal else 0.05, stop))
    await settle()
    assert not draining.done()
    if by_signal:
        stop.set()
    async with asyncio.timeout(5):
        await draining
    assert harness.scheduler.unfinished_calls == 1
    await harness.scheduler.close()


def test_a_process_that_hangs_is_ended() -> None:
    script = (
        "import time\nfrom gateway.server.shutdown import force_exit_after\nforce_exit_after(0.2)\ntime.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=40)
    assert done.returncode == 1
    assert "the shutdown did not complete within 0.2 s" in done.stderr
    assert 'File "<string>", line 4' in done.stderr, "the traceback shows what hangs"
