"""Run long programs with low priority beside the tests, on cores that the tests leave idle."""

import os
import signal
import subprocess
import tempfile

_NICE = 19
_STOP_SECONDS = 40


class BackgroundProcess:
    """A program with one thread for numerical work, and the lowest priority."""

    def __init__(self, *command: str, **environment: str) -> None:
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `end`)
        self._process = subprocess.Popen(
            ["nice", "-n", str(_NICE), *command],
            env={**os.environ, "PYTEST_ADDOPTS": "", "OMP_NUM_THREADS": "1", **environment},
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait(self, seconds: float) -> tuple[int, str]:
        """Return the exit status and the output. Raises subprocess.TimeoutExpired."""
        status = self._process.wait(seconds)
        self._output.seek(0)
        return status, self._output.read().decode()

    def end(self) -> None:
        """Kill the program and the processes that it started, if they run."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(_STOP_SECONDS)
        self._output.close()
