"""Short form of `python -m bench.hostile`: one key cannot harm another. Latencies are not asserted, except timeouts.

The model is random and small, because the work of a model is measured by hand, with the default one.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.attacks import ATTACKS, LONG
from bench.hostile import Row
from tests.fakes.checkpoints import write_tiny_default

pytestmark = pytest.mark.slow

TEST_SECONDS = 890.0
"""Longest time of all attacks together, in seconds."""
OTHER_KEY_SECONDS = 60.0
"""Latency, in seconds, from which a request of the other key counts as failed."""


def results(output: str) -> tuple[list[Row], list[str]]:
    """Return the rows that the command printed, and what went wrong when its server ended."""
    lines = output.splitlines()
    printed = next(line for line in lines if line.startswith('[{"name"'))
    rows = [Row(**{key: value for key, value in row.items() if key != "p99"}) for row in json.loads(printed)]
    return rows, [line for line in lines if line.startswith("FAULT when the server ended")]


def faults(rows: list[Row]) -> list[str]:
    """Return the faults of the server during the attacks."""
    found = [f"{row.name}: {fault}" for row in rows for fault in row.faults]
    return found + [
        f"{row.name}: the other key waited {max(row.waits):.0f} s" for row in rows if max(row.waits) > OTHER_KEY_SECONDS
    ]


def run(command: Sequence[str]) -> tuple[int, str]:
    """Run a command that starts servers. Return its exit status and its output. After its time, end all its
    processes."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=TEST_SECONDS)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    return process.returncode, output


def test_no_attack_of_one_key_harms_another(tmp_path: Path) -> None:
    model = write_tiny_default(tmp_path / "tiny", window=8192)
    options = ["--short", "--rounds", "2", "--requests", "1000", "--json"]
    server = ["--kv-tokens", "16384", "--model", str(model)]
    status, output = run([sys.executable, "-m", "bench.hostile", *options, "--", *server])
    assert "without a fault" in output, output[-4000:]
    rows, ends = results(output)
    assert faults(rows) + ends == [], output[-4000:]
    assert status in (0, 1), "1: a latency is over the bound of the benchmark"
    assert len(rows) == len(ATTACKS) - len(LONG) + 3
    by_name = {row.name: row for row in rows}
    assert by_name["as many sessions as there may be"].answers["413"] > 0, "the attack reached the limit"
    assert by_name["calls on a value that never comes"].answers["429"] > 0
    assert by_name["deep, wide and wrong bodies"].answers["400"] > 30
    assert by_name["1000 random requests"].answers["200"] > 100
