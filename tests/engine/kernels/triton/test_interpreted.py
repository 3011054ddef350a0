"""Run tests/interpreter in a process in which Triton interprets its kernels."""

import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_interpreter_suite_passes() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/interpreter"]
    environment = {**os.environ, "PYTEST_ADDOPTS": "", "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}
    suite = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=890)
    assert suite.returncode == 0, suite.stdout[-4000:] + suite.stderr[-1000:]
    assert " passed" in suite.stdout
