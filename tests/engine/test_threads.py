"""engine/__init__.py: what the OpenMP runtime is told before it is loaded."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("given", [None, "77"])
def test_threads_that_wait_do_not_spin_for_long(given: str | None) -> None:
    env = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    env |= {"OMP_DISPLAY_ENV": "verbose"} | ({} if given is None else {"GOMP_SPINCOUNT": given})
    done = subprocess.run(
        [sys.executable, "-c", "from engine import Engine"], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0
    told = [line for line in done.stderr.splitlines() if "GOMP_SPINCOUNT" in line]
    if not told:
        pytest.skip("this torch has another OpenMP runtime")
    assert f"'{given or 2000}'" in told[0]
