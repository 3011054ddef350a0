"""gateway/web: the modules that need no document, run by node."""

import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
NODE = shutil.which("node")


@pytest.mark.skipif(NODE is None, reason="node is not installed")
@pytest.mark.parametrize("file", sorted(path.name for path in FOLDER.glob("*.test.mjs")))
def test_modules(file: str) -> None:
    assert NODE is not None
    ran = subprocess.run([NODE, "--test", FOLDER / file], capture_output=True, text=True, timeout=100, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    passed = [line for line in ran.stdout.splitlines() if line.startswith(("# pass ", "ℹ pass "))]
    assert passed, ran.stdout
    assert int(passed[0].split()[-1]) > 0, "the file has tests"
