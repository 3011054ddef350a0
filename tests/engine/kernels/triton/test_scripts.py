"""Run every script of bench/gpu as far as it works without a GPU, with only its own dependencies."""

import json
import subprocess
import sys

import pytest
import torch

BARE = """
import runpy, sys
for name in ("aiohttp", "gguf", "huggingface_hub", "llguidance", "msgspec", "psutil", "pydantic", "tokenizers", "tqdm"):
    sys.modules[name] = None
sys.argv = sys.argv[1:] + ["--json"]
runpy.run_module(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="they measure here")
@pytest.mark.parametrize("script", ["attention", "prefill", "layers", "steps"])
def test_script_runs_and_passes(script: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BARE, f"bench.gpu.{script}"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) >= 2
    assert all(row.get("error", 0.0) < 2e-5 and row.get("other tokens", 0) == 0 for row in rows), rows
    assert any("error" in row for row in rows)
