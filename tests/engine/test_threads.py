"""Test of engine/__init__.py: settings of the OpenMP runtime before it is loaded."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("given", [None, "77"])
def test_waiting_threads_spin_only_briefly(given: str | None) -> None:
    env = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    env |= {"OMP_DISPLAY_ENV": "verbose"} | ({} if given is None else {"GOMP_SPINCOUNT": given})
    done = subprocess.run(
        [sys.executable, "-c", "from engine import Engine"], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0
    lines = [line for line in done.stderr.splitlines() if "GOMP_SPINCOUNT" in line]
    if not lines:
        pytest.skip("this torch has another OpenMP runtime")
    assert f"'{given or 2000}'" in lines[0]
