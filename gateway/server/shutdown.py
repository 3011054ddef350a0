"""Stop the process: on signals, after a drain, and at the latest after a fixed time."""

import asyncio
import faulthandler
import logging
import os
import signal
import sys
import threading
from collections.abc import Coroutine
from typing import Any

from gateway.scheduler import Scheduler

log = logging.getLogger("myna")


def stop_on_signals(stop: asyncio.Event) -> None:
    """Set `stop` on SIGTERM, SIGINT and SIGHUP."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # `nohup` ignores hangups
            loop.add_signal_handler(number, stop.set)


async def run_unless_stopped(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Await the work, or cancel it if `stop` is set first. Return whether the work is done."""
    task = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait((task, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if task.done():
        task.result()
        return True
    task.cancel()
    return False


async def drain(scheduler: Scheduler, seconds: float, stop: asyncio.Event) -> None:
    """Admit no new calls, and wait up to `seconds` for those that run. A second signal ends the wait."""
    scheduler.stop_admitting()
    if not scheduler.unfinished_calls:
        return
    log.info(
        "stopping: %d calls may finish within %g s; a second signal ends them", scheduler.unfinished_calls, seconds
    )
    stop.clear()
    waits = [asyncio.ensure_future(scheduler.wait_idle()), asyncio.ensure_future(stop.wait())]
    await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    if scheduler.unfinished_calls:
        log.warning("%d calls did not finish and were cancelled", scheduler.unfinished_calls)


def force_exit_after(seconds: float) -> None:
    """End the process after this time, even if something hangs: for example a disk that does not answer."""

    def end() -> None:
        print(f"myna: the shutdown did not complete within {seconds:g} s; exiting now", file=sys.stderr)
        faulthandler.dump_traceback()
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
