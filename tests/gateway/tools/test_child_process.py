"""Tests of gateway/tools/child_process.py: processes start with a chosen environment, and always end."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from gateway.tools.child_process import CannotStart, ChildProcess

pytestmark = pytest.mark.waits


async def start(code: str, **env: str) -> ChildProcess:
    return await ChildProcess.start([sys.executable, "-c", code], env, None)


async def test_the_process_has_exactly_the_named_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MYNA_SECRET", "secret")
    code = "print(open('/proc/self/environ').read(), flush=True); input()"  # it lives until its input ends
    process = await start(code, ONE="1", TWO="=2")
    try:
        line = await asyncio.wait_for(process.stdout.readline(), 30)
        assert line == b"ONE=1\0TWO==2\0\n"
        assert os.getpgid(process.pid) == process.pid
    finally:
        await process.end()


async def test_the_process_ignores_no_signals() -> None:
    command = ["/bin/sh", "-c", "grep SigIgn /proc/self/status"]
    process = await ChildProcess.start(command, {"PATH": "/usr/bin:/bin"}, None)
    line = await asyncio.wait_for(process.stdout.readline(), 30)
    await process.end()
    ignored = int(line.split()[1], 16)
    assert not any(ignored >> (number - 1) & 1 for number in (signal.SIGPIPE, signal.SIGTERM, signal.SIGINT))


async def test_a_process_that_ignores_signals_ends_with_its_children() -> None:
    code = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3600)'])
print(child.pid, flush=True)
time.sleep(3600)
"""
    process = await start(code)
    grandchild = int(await asyncio.wait_for(process.stdout.readline(), 30))
    assert await asyncio.wait_for(process.end(), 30) == "signal SIGKILL"
    with suppress(psutil.NoSuchProcess):
        while psutil.Process(grandchild).status() != psutil.STATUS_ZOMBIE:
            await asyncio.sleep(0.01)


async def test_a_process_may_end_when_its_input_is_closed() -> None:
    process = await start("import sys; sys.stdin.read(); sys.exit(4)")
    assert await asyncio.wait_for(process.end(), 30) == "exit status 4"


async def test_a_cancelled_end_kills_immediately() -> None:
    process = await start("import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(3600)")
    ending = asyncio.create_task(process.end())
    await asyncio.sleep(0.05)
    ending.cancel()
    await asyncio.wait({ending}, timeout=30)
    with suppress(psutil.NoSuchProcess):
        while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
            await asyncio.sleep(0.01)


async def test_the_end_of_stderr_is_kept() -> None:
    process = await start("import sys; sys.stderr.write('x' * 3_000_000 + chr(10) + ' the\\treason \\n\\n')")
    assert await process.stdout.read() == b""
    async with asyncio.timeout(30):
        while process.last_stderr_line() != "the reason":
            await process.wait_for_end()
    assert await process.end() == "exit status 0"


@pytest.mark.parametrize("command", [["/no/such/program"], ["no-such-program"], ["x\0y"], ["/etc/passwd"]])
async def test_a_program_that_is_missing_is_reported(command: list[str]) -> None:
    with pytest.raises(CannotStart) as caught:
        await ChildProcess.start(command, {}, None)
    assert "\n" not in str(caught.value)


async def test_a_folder_that_is_missing_is_reported() -> None:
    with pytest.raises(CannotStart):
        await ChildProcess.start([sys.executable], {}, "/no/such/folder")


def test_the_process_dies_with_the_gateway(tmp_path: Path) -> None:
    code = """
import asyncio, os, signal, sys
from gateway.tools.child_process import ChildProcess
async def main():
    sleeper = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(3600)"
    process = await ChildProcess.start([sys.executable, "-c", sleeper], {}, None)
    await process.stdout.readline()
    print(process.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    pid = json.loads(done.stdout)
    with suppress(psutil.NoSuchProcess):
        psutil.Process(pid).wait(30)
