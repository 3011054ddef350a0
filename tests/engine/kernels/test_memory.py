"""Tests of engine/kernels/memory.py."""

import psutil
import torch

from engine.kernels.memory import large_zeros


def test_large_zeros_take_memory_when_written() -> None:
    before = psutil.Process().memory_info().rss
    tensor = large_zeros((512, 1024, 1024), torch.bfloat16)
    assert psutil.Process().memory_info().rss - before < 64 << 20, "a gibibyte is reserved, not used"
    assert not tensor[100].any()
    tensor[100, 5, 5] = 2.0
    assert float(tensor[100].sum()) == 2.0
