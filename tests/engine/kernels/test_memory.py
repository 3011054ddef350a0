"""engine/kernels/memory.py"""

import psutil
import torch

from engine.kernels.memory import large_zeros


def test_memory_comes_as_it_is_written() -> None:
    before = psutil.Process().memory_info().rss
    tensor = large_zeros((512, 1024, 1024), torch.bfloat16)
    assert psutil.Process().memory_info().rss - before < 64 << 20, "a gibibyte was promised, not taken"
    assert not tensor[100].any()
    tensor[100, 5, 5] = 2.0
    assert float(tensor[100].sum()) == 2.0
