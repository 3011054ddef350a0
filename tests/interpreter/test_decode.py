"""Decode attention over trees against float64, on random trees.

Bounds of the largest error, with standard normal keys, values and queries: float32 5e-6; float16 2e-3, of which half is
the rounding of the answer; bfloat16 2e-2, nearly all of it that rounding. Products in bfloat16 are made in float32 here:
the interpreter's own are wrong.
"""

import numpy as np
import pytest
import torch

from engine.kernels.triton.tree import TreeAttention
from tests.engine.kernels.triton.reference import attend, batch

BOUNDS = {torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
CASES = [
    (torch.float32, 4, 64, 0, 0.0),
    (torch.float32, 1, 64, 20, 30.0),
    (torch.float16, 3, 96, 0, 0.0),
    (torch.float16, 2, 256, 33, 0.0),
    (torch.bfloat16, 8, 128, 0, 50.0),
]


def run(
    seed: int,
    dtype: torch.dtype,
    group: int,
    size: int,
    window: int,
    softcap: float,
    *,
    share: bool = True,
    limit: int = 20,
) -> tuple[float, int]:
    """The largest error, and how many parts there were to merge."""
    tables, lengths = batch(seed)
    tables, lengths = tables[:limit], lengths[:limit]
    pick = torch.Generator().manual_seed(seed)
    kv_heads, n = 2, len(lengths)
    shape = (int(tables.max()) + 1, kv_heads, 16, size)
    keys, values = (torch.randn(shape, generator=pick).to(dtype) for _ in range(2))
    queries = torch.randn(n, kv_heads * group, size, generator=pick).to(dtype)
    attention = TreeAttention(
        heads=kv_heads * group,
        kv_heads=kv_heads,
        head_size=size,
        block_size=16,
        rows=32,
        width=tables.shape[1] + 3,
        programs=5,
        device=torch.device("cpu"),
    )
    work = attention.prepare(tables, lengths, window=window, share=share)
    scale = size**-0.5
    out = attention(queries, keys, values, scale=scale, softcap=softcap, upcast=dtype == torch.bfloat16)
    plain_keys, plain_values = (part.double().numpy().transpose(0, 2, 1, 3) for part in (keys, values))
    expected = attend(queries.double().numpy(), plain_keys, plain_values, tables, lengths, scale, window, softcap)
    return float(np.abs(out.double().numpy() - expected).max()), int(work.starts[-1]) - n


@pytest.mark.parametrize(("dtype", "group", "size", "window", "softcap"), CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_random_trees(seed: int, dtype: torch.dtype, group: int, size: int, window: int, softcap: float) -> None:
    error, _ = run(seed, dtype, group, size, window, softcap)
    assert error < BOUNDS[dtype]


def test_without_sharing() -> None:
    assert run(4, torch.float32, 4, 64, 0, 0.0, share=False)[0] < BOUNDS[torch.float32]


def test_there_is_something_to_merge() -> None:
    assert sum(run(seed, torch.float32, 1, 64, 0, 0.0)[1] for seed in range(2)) > 0


def test_a_single_row_of_one_key() -> None:
    keys = torch.randn(2, 1, 16, 64)
    attention = TreeAttention(
        heads=1, kv_heads=1, head_size=64, block_size=16, rows=4, width=2, programs=3, device=torch.device("cpu")
    )
    attention.prepare(np.array([[1]], dtype=np.int32), np.array([1], dtype=np.int32))
    out = attention(torch.randn(1, 1, 64), keys, keys, scale=1.0)
    torch.testing.assert_close(out[0, 0], keys[1, 0, 0])
