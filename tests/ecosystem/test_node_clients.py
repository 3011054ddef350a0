"""Clients from npm, which scripts/test-ecosystem installs where there is npm."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
MODEL = "SmolLM2-135M-Instruct"
FOLDER = Path(sys.prefix) / "node"
"""Folder with the packages of package.json."""


@pytest.mark.skipif(not (FOLDER / "node_modules").is_dir(), reason="the packages of npm could not be installed")
@pytest.mark.parametrize("program", sorted(HERE.glob("*.mjs")), ids=lambda path: path.stem)
def test_programs_in_javascript_run(program: Path, base_url: str) -> None:
    script = shutil.copy(program, FOLDER)  # node looks for packages beside the program
    env = {**os.environ, "ANTHROPIC_BASE_URL": base_url.removesuffix("/v1")}
    done = subprocess.run(["node", script, MODEL], capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("done\n")
