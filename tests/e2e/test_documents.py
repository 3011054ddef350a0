"""docs/semantic-variables.md: every block, one after another, as a reader would run them."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.server import Server

TUTORIAL = Path(__file__).parents[2] / "docs" / "semantic-variables.md"


def test_every_block_runs(server: Server) -> None:
    blocks = re.findall(r"```(\w*)\n(.*?)```", TUTORIAL.read_text(), flags=re.DOTALL)
    assert {language for language, _ in blocks} == {"python"}, "a block of another kind would not be run"
    program = "\n".join(code for _, code in blocks)
    assert program.count("http://127.0.0.1:8000/v1") == 1
    done = subprocess.run(
        [sys.executable, "-c", program.replace("http://127.0.0.1:8000/v1", f"{server.address}/v1")],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONWARNINGS": ""},
    )
    assert done.returncode == 0, done.stderr
    assert "a call would wait for itself" in done.stdout
