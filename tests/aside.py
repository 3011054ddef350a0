"""A long test in a process of its own that leaves the cores to all others, and takes what they leave."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence

_NICE = 19


class Aside:
    """pytest over some tests, one thread, behind everything else that runs."""

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
        """Its exit status, and what it printed. Raises subprocess.TimeoutExpired."""
        status = self._process.wait(seconds)
        self._output.seek(0)
        return status, self._output.read().decode()

    def end(self) -> None:
        """Ends it, if it has not ended."""
        self._process.kill()
        self._process.wait()
        self._output.close()
