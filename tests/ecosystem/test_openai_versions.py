"""Streamed calls, and conversations with them, with older versions of the openai package that are still in use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
MODEL = "SmolLM2-135M-Instruct"
VERSIONS = (HERE / "openai-versions.txt").read_text().split()


@pytest.mark.parametrize("version", [*VERSIONS, "installed"])
def test_streamed_calls_are_complete(version: str, base_url: str) -> None:
    program = [sys.executable, "-W", "ignore", str(HERE / "openai_streams.py"), MODEL]
    env = {**os.environ, "OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": "none"}
    if version != "installed":
        folder = Path(sys.prefix) / "openai" / version
        assert (folder / "openai").is_dir(), "scripts/test-ecosystem installs it"
        env["PYTHONPATH"] = str(folder)
    done = subprocess.run(program, capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stderr
