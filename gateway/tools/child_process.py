"""A server as a child process in its own process group, with exactly the environment that the settings name."""

import asyncio
import json
import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress

from gateway.tools.messages import one_line

_TERM_SECONDS = 2.0
"""Time in which a process has to end after its stdin is closed, and again after SIGTERM, in seconds."""
_END_SECONDS = 0.3
"""Time in which a process that has closed its stdout usually ends, in seconds."""
_POLL_SECONDS = 0.02
"""Poll interval of a process group that ends, in seconds."""
_READ_BYTES = 64 << 10
"""Size of a read from a pipe, in bytes."""
_LOG_BYTES = 2_000
"""Size of the end of stderr that is kept for messages, in bytes."""
_LOG_PAUSE_SECONDS = 0.01
"""Pause after each read of stderr, in seconds."""
_LAUNCHER = """
import ctypes, json, os, signal, sys
names, parent, *command = sys.argv[1:]
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(parent):
    sys.exit(1)
signal.pthread_sigmask(signal.SIG_SETMASK, ())
for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and a program inherits this
    signal.signal(number, signal.SIG_DFL)
environment = {name: os.environ[name] for name in json.loads(names)}
try:
    os.execve(command[0], command[1:], environment)
except OSError as error:
    sys.exit(f"cannot run {command[0]}: {error.strerror}")
"""
"""Program that asks the kernel to kill the process when the gateway dies (PR_SET_PDEATHSIG), and becomes the server.

`preexec_fn` could do this without a program, but is not safe in a process with threads."""


class CannotStart(Exception):
    """The process could not be started. The message says why."""


class ChildProcess:
    """Owner of one process and of its process group."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        assert process.stdin is not None
        assert process.stdout is not None
        self.stdin = process.stdin
        self.stdout = process.stdout
        self._log = b""
        self._log_reader = asyncio.create_task(self._read_log(), name="stderr of a tool server")

    @classmethod
    async def start(cls, command: Sequence[str], env: Mapping[str, str], cwd: str | None) -> "ChildProcess":
        """Start a process. Raises CannotStart."""
        program = shutil.which(command[0], path=env.get("PATH", os.environ.get("PATH")))
        if program is None:
            raise CannotStart(f"there is no program {one_line(command[0])}")
        if not program.startswith("/"):  # relative to this directory, not to `cwd`
            program = f"{os.getcwd()}/{program}"
        launcher = (sys.executable, "-I", "-S", "-c", _LAUNCHER, json.dumps(list(env)), str(os.getpid()))
        try:
            process = await asyncio.create_subprocess_exec(
                *launcher,
                program,
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=dict(env),
                cwd=cwd,
                start_new_session=True,
                limit=_READ_BYTES,
            )
        except (OSError, ValueError) as error:
            raise CannotStart(one_line(str(error))) from None
        return cls(process)

    @property
    def pid(self) -> int:
        """Process id, which is also the id of the process group."""
        return self._process.pid

    def last_stderr_line(self) -> str:
        """Return the last line of stderr, for messages; empty if there is none."""
        lines = self._log.decode("utf-8", "replace").split("\n")
        return next((line for line in map(one_line, reversed(lines)) if line), "")

    async def wait_for_end(self) -> None:
        """Wait a short time for the end of a process that has closed its stdout, and for the rest of its stderr."""
        await asyncio.wait({self._log_reader}, timeout=_END_SECONDS)
        await self._wait(_END_SECONDS)

    async def _read_log(self) -> None:
        stderr = self._process.stderr
        assert stderr is not None
        while data := await stderr.read(_READ_BYTES):
            self._log = (self._log + data)[-_LOG_BYTES:]
            await asyncio.sleep(_LOG_PAUSE_SECONDS)

    async def end(self) -> str:
        """End the process group: close stdin, then SIGTERM, then SIGKILL. Return how the process ended.

        If this is cancelled, the group is killed immediately.
        """
        try:
            with suppress(OSError, RuntimeError):
                self.stdin.close()
            if not await self._wait(_TERM_SECONDS):
                self._signal(signal.SIGTERM)
                await self._wait(_TERM_SECONDS)
        finally:
            self._signal(signal.SIGKILL)  # also what the process has left behind in its group
            self._log_reader.cancel()
            try:
                await self._wait(_TERM_SECONDS)
            finally:
                self._close_pipes()  # last: it could reap the process, and asyncio would not see how it ended
        return self.how_it_ended()

    def how_it_ended(self) -> str:
        """Return the exit status or the signal that ended the process, for messages."""
        status = self._process.returncode
        if status is None:
            return "still running"
        if status >= 0:
            return f"exit status {status}"
        try:
            return f"signal {signal.Signals(-status).name}"
        except ValueError:
            return f"signal {-status}"

    async def _wait(self, seconds: float) -> bool:
        """Wait until the process has ended. Return whether it has.

        `Process.wait` also waits for the end of the pipes, which a grandchild may hold open.
        """
        deadline = asyncio.get_running_loop().time() + seconds
        while self._process.returncode is None:
            if asyncio.get_running_loop().time() > deadline:
                return False
            await asyncio.sleep(_POLL_SECONDS)
        return True

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _close_pipes(self) -> None:
        transport = getattr(self._process, "_transport", None)
        if transport is not None:  # asyncio closes it only when all pipes have ended
            with suppress(OSError):
                transport.close()
