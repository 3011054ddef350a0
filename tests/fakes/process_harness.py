"""Start and stop a program as a process."""

import os
import re
import signal
import subprocess
import sys
import threading
from types import TracebackType
from typing import Self

_START_SECONDS = 180
_STOP_SECONDS = 40


class ProcessHarness:
    """A running command. `started`: the line that it printed when it was ready. `log`: lines of stderr so far."""

    def __init__(self, *command: str, address: str, env: dict[str, str] | None = None, module: str = "gateway") -> None:
        """Start a command. Raises RuntimeError if it does not start.

        `module`: Python module to run. `address`: pattern of the address in the line that it prints.
        """
        self.log: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )
        assert self.process.stdout is not None
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        watchdog = threading.Timer(_START_SECONDS, self.process.kill)
        watchdog.start()
        self.started = self.process.stdout.readline()
        watchdog.cancel()
        found = re.search(address, self.started)
        if found is None:
            self.process.wait(_STOP_SECONDS)
            self._close()
            raise RuntimeError(f"the command did not start: {''.join(self.log)}")
        self.address = found[1]

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def wait(self, seconds: float) -> int:
        """Wait for the process to exit by itself, and return its exit status. Raises AssertionError with the log if it
        does not."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"still running after {seconds:g} s; its log:\n{''.join(self.log)}") from error

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the process to exit, and return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self._close()

    def _close(self) -> None:
        self._reader.join(_STOP_SECONDS)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()
