"""Attention over paged KV against float64: decoding rows on random trees, prompts, and both in one step.

Bounds of the largest error, with standard normal keys, values and queries: float32 5e-6; float16 2e-3, half of which is
the rounding of the result; bfloat16 2e-2, nearly all of it that rounding. Here products of bfloat16 are computed in
float32: the interpreter's own are wrong.
"""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from engine.kernels import LayerShape
from engine.kernels.triton.paged import PagedAttention
from tests.engine.kernels.triton.reference import attend, batch
from tests.interpreter.device import DEVICE, INTERPRETED, MORE

BOUNDS = {torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
CASES = [
    (torch.float32, 4, 64, 0, 0.0),
    (torch.float32, 1, 64, 20, 30.0),
    (torch.float16, 3, 96, 0, 0.0),
    (torch.float16, 2, 256, 33, 0.0),
    (torch.bfloat16, 8, 128, 0, 50.0),
]


def layer_shape(heads: int, kv_heads: int, size: int, softcap: float = 0.0, scale: float | None = None) -> LayerShape:
    return LayerShape(heads, kv_heads, size, size, 64, 64, "silu", scale or size**-0.5, softcap, 1e-5)


def paged(
    shape: LayerShape, *, rows: int = 64, sequences: int = 32, width: int = 64, programs: int = 5, **other: Any
) -> PagedAttention:
    return PagedAttention(
        shape, 16, rows=rows, sequences=sequences, width=width, programs=programs, device=DEVICE, **other
    )


def run(
    counts: NDArray[np.int64],
    tables: NDArray[np.int32],
    lengths: NDArray[np.int32],
    dtype: torch.dtype,
    group: int,
    size: int,
    window: int,
    softcap: float,
    *,
    share: bool = True,
    places: int | None = None,
    programs: int = 5,
    kept: torch.dtype | None = None,
    sequences: int = 32,
    element_bytes: int = 2,
) -> tuple[float, PagedAttention]:
    """Return the largest error. `counts`: rows of each sequence. `kept`: dtype of keys and values, if it differs."""
    pick = torch.Generator().manual_seed(len(lengths))
    kv_heads, rows = 2, int(counts.sum())
    blocks = int(tables.max()) + 1
    keys, values = (torch.randn(blocks, kv_heads, 16, size, generator=pick).to(DEVICE, kept or dtype) for _ in range(2))
    queries = torch.randn(max(rows, places or 0), kv_heads * group, size, generator=pick).to(DEVICE, dtype)
    shape = layer_shape(kv_heads * group, kv_heads, size, softcap)
    attention = paged(
        shape,
        rows=rows,
        sequences=sequences,
        width=tables.shape[1],
        upcast=INTERPRETED and dtype == torch.bfloat16,
        programs=programs,
        element_bytes=element_bytes,
    )
    starts = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
    attention.prepare(starts, lengths, tables, share=share, places=places)
    whose = np.repeat(np.arange(len(counts)), counts)
    positions = (lengths[whose] - starts[1:][whose] + np.arange(rows)).astype(np.int32)
    out = attention(queries, keys, values, torch.from_numpy(np.resize(positions, len(queries))).to(DEVICE), window)[
        :rows
    ]
    plain_keys, plain_values = (part.cpu().double().numpy().transpose(0, 2, 1, 3) for part in (keys, values))
    requested = queries[:rows].cpu().double().numpy()
    expected = attend(requested, plain_keys, plain_values, tables[whose], positions + 1, shape.scale, window, softcap)
    return float(np.abs(out.cpu().double().numpy() - expected).max()), attention


def trees(seed: int, limit: int = 20) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:
    """Return decoding rows."""
    tables, lengths = batch(seed)
    return np.ones(len(lengths[:limit]), dtype=np.int64), tables[:limit], lengths[:limit]


def prompts(seed: int) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:
    """Return some decoding rows, and the ends of some prompts, with and without cached tokens before them."""
    pick = np.random.default_rng(seed)
    _, tables, lengths = trees(seed, 7)
    maximum = np.minimum(lengths, pick.choice([1, 1, 2, 15, 16, 17, 40, 1000], len(lengths)))
    return maximum.astype(np.int64), tables, lengths


@pytest.mark.parametrize(("dtype", "group", "size", "window", "softcap"), CASES)
@pytest.mark.parametrize("seed", range(MORE))
def test_attention_over_random_trees(
    seed: int, dtype: torch.dtype, group: int, size: int, window: int, softcap: float
) -> None:
    assert run(*trees(seed), dtype, group, size, window, softcap)[0] < BOUNDS[dtype]


@pytest.mark.parametrize(("dtype", "group", "size", "window", "softcap"), CASES)
@pytest.mark.parametrize("seed", range(20, 20 + MORE))
def test_prompts_and_decode_rows_in_one_step(
    seed: int, dtype: torch.dtype, group: int, size: int, window: int, softcap: float
) -> None:
    counts, tables, lengths = prompts(seed)
    assert (counts > 1).any()
    assert run(counts, tables, lengths, dtype, group, size, window, softcap)[0] < BOUNDS[dtype]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_fp8_keys(dtype: torch.dtype) -> None:
    """Attention is exact over the stored numbers. The interpreter rounds to FP8 wrongly, so only the compiler is tested
    for what is written."""
    assert run(*prompts(7), dtype, 2, 64, 0, 0.0, kept=torch.float8_e4m3fn)[0] < BOUNDS[dtype]


def test_sixty_four_rows_with_one_prefix() -> None:
    """Give each row a key of its own, except for those that end with the prefix."""
    common = np.tile(np.arange(1, 7, dtype=np.int32), (64, 1))
    tables = np.concatenate([common, 7 + np.arange(64, dtype=np.int32).reshape(64, 1)], axis=1)
    lengths = np.where(np.arange(64) % 5 == 0, 96, 97).astype(np.int32)
    ones = np.ones(64, dtype=np.int64)
    error, attention = run(ones, tables, lengths, torch.float32, 1, 64, 0, 0.0, sequences=64)
    assert error < BOUNDS[torch.float32]
    work = attention.windows[0].work
    assert work is not None
    assert int((work.items[:, 5] - work.items[:, 4]).sum()) < 64 * 96, "the rows read the prefix together"


def test_group_larger_than_a_tile() -> None:
    """Float32 tiles have sixteen rows. One decoding row, and five of a prompt."""
    tables = np.array([[1, 2, 0], [3, 4, 5]], dtype=np.int32)
    lengths = np.array([20, 37], dtype=np.int32)
    step = (np.array([1, 5]), tables, lengths)
    assert run(*step, torch.float32, 20, 64, 0, 0.0, element_bytes=4)[0] < BOUNDS[torch.float32]


def test_without_sharing() -> None:
    assert run(*trees(4), torch.float32, 4, 64, 0, 0.0, share=False)[0] < BOUNDS[torch.float32]


def test_long_rows_are_merged() -> None:
    parts = 0
    for seed in range(2):
        step = trees(seed)
        work = run(*step, torch.float32, 1, 64, 0, 0.0)[1].windows[0].work
        assert work is not None
        parts += int(work.starts[-1]) - len(step[0])
    assert parts > 0


@pytest.mark.parametrize("window", [0, 200])
def test_few_rows_of_a_long_prompt_are_split_by_keys(window: int) -> None:
    """Use two rows with 1,000 keys: too few for all programs if each reads all keys."""
    tables = np.arange(1, 65, dtype=np.int32).reshape(1, -1)
    error, attention = run(
        np.array([2]), tables, np.array([1003], dtype=np.int32), torch.float32, 2, 64, window, 0.0, programs=6
    )
    assert attention.windows[window].is_split == (window == 0)
    assert error < BOUNDS[torch.float32]


def test_rows_that_see_no_key_of_a_part() -> None:
    """Split 225 keys at 128. The first of 120 rows sees 106 keys, so it has nothing in the second part."""
    tables = np.arange(1, 17, dtype=np.int32).reshape(1, -1)
    error, attention = run(np.array([120]), tables, np.array([225], dtype=np.int32), torch.float16, 1, 128, 0, 0.0)
    assert attention.windows[0].is_split
    assert error < BOUNDS[torch.float16]


def test_unused_places_change_nothing() -> None:
    assert run(*trees(5), torch.float32, 2, 64, 0, 0.0, places=24)[0] < BOUNDS[torch.float32]


def test_single_row_with_one_key() -> None:
    keys = torch.randn(2, 1, 16, 64, device=DEVICE)
    attention = paged(layer_shape(1, 1, 64, scale=1.0), rows=4, width=2, programs=3)
    attention.prepare(*(np.array(part, dtype=np.int32) for part in ([0, 1], [1], [[1]])))
    out = attention(torch.randn(1, 1, 64, device=DEVICE), keys, keys, torch.zeros(1, dtype=torch.int32, device=DEVICE))
    torch.testing.assert_close(out[0, 0], keys[1, 0, 0])


def test_layers_with_and_without_window() -> None:
    """Both are planned in one step, whichever comes first, and the next step plans both again."""
    counts, tables, lengths = prompts(6)
    starts = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
    rows = int(counts.sum())
    keys, values = torch.randn(2, int(tables.max()) + 1, 1, 16, 64, device=DEVICE)
    queries = torch.randn(rows, 2, 64, device=DEVICE)
    attention = paged(layer_shape(2, 1, 64), rows=rows)
    whose = np.repeat(np.arange(len(counts)), counts)
    positions = (lengths[whose] - starts[1:][whose] + np.arange(rows)).astype(np.int32)
    plain_keys, plain_values = (part.cpu().double().numpy().transpose(0, 2, 1, 3) for part in (keys, values))
    for _ in range(2):
        attention.prepare(starts, lengths, tables)
        for window in (24, 0):
            out = attention(queries, keys, values, torch.from_numpy(positions).to(DEVICE), window)
            expected = attend(
                queries.cpu().double().numpy(), plain_keys, plain_values, tables[whose], positions + 1, 1 / 8, window
            )
            assert float(np.abs(out.cpu().double().numpy() - expected).max()) < BOUNDS[torch.float32]
