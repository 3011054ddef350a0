"""Run long tests in a separate process with low priority, so that they use cores that other tests leave idle."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence

_NICE = 19


class BackgroundTests:
    """A pytest process over some tests, with one thread and the lowest priority."""

    def __init__(self, tests: Sequence[str], **environment: str) -> None:
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `end`)
        self._process = subprocess.Popen(
            ["nice", "-n", str(_NICE), sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
            env={**os.environ, "PYTEST_ADDOPTS": "", "OMP_NUM_THREADS": "1", **environment},
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )

    def wait(self, seconds: float) -> tuple[int, str]:
        """Return the exit status and the output. Raises subprocess.TimeoutExpired."""
        status = self._process.wait(seconds)
        self._output.seek(0)
        return status, self._output.read().decode()

    def end(self) -> None:
        """Kill the process if it runs."""
        self._process.kill()
        self._process.wait()
        self._output.close()
