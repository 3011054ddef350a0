"""Tests of engine/gpus.py: GPUs are counted without loading torch."""

from pathlib import Path

import pytest
import torch

from engine.gpus import torch_has_cuda, visible_gpus


@pytest.mark.parametrize(
    ("named", "seen"),
    [(None, 2), ("", 0), ("0", 1), ("1,0", 2), ("0,5,1", 1), ("-1", 0), ("GPU-8932f937,GPU-12", 2), ("0,1,1", 2)],
)
def test_gpus_are_counted_without_torch(tmp_path: Path, named: str | None, seen: int) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert visible_gpus({} if named is None else {"CUDA_VISIBLE_DEVICES": named}, tmp_path) == seen


@pytest.mark.parametrize(
    ("version", "has"),
    [
        ("__version__ = '2.13.0+cpu'\ndebug = False\ncuda: Optional[str] = None\nhip: Optional[str] = None\n", False),
        ("__version__ = '2.13.0'\ncuda: Optional[str] = '12.8'\nhip: Optional[str] = None\n", True),
        ("cuda = None\n", False),
    ],
)
def test_torch_without_cuda_uses_no_gpu(version: str, has: bool) -> None:
    """Otherwise a machine with GPUs and a CPU-only torch would not start, although it can serve on the CPU."""
    assert torch_has_cuda(version) == has


def test_installed_torch_agrees() -> None:
    assert torch_has_cuda() == (torch.version.cuda is not None)


def test_machine_without_device_files_has_no_gpus(tmp_path: Path) -> None:
    assert visible_gpus({}, tmp_path / "none") == 0
