"""Prefill attention over paged KV: time, rate of products, and comparison with torch's attention over contiguous KV.

A case lists sequences of `rows @ keys`: 512@8192 is the last 512 rows of a prompt, the last of which sees 8,192 keys.
"""

import itertools

import numpy as np
import torch
import torch.nn.functional as F

from bench.gpu import HAS_GPU
from bench.gpu.common import BLOCK, DEVICE, SHAPES, SMALL, Row, arguments, matrix_rate, seconds, tell
from engine.kernels.base import LayerShape
from engine.kernels.triton.paged import PagedAttention, Tiles, programs_on

CASES = {
    "8k at once": "8192@8192",
    "a chunk behind 8k": "512@8704",
    "a few rows behind 32k": "18@32768",
    "sixteen of 512": ",".join(["512@512"] * 16),
    "uneven": "4096@4096,512@8704,64@16384,18@2000",
}


def sequences(case: str, divide: int = 1) -> list[tuple[int, int]]:
    """Return (rows, keys) of each sequence."""
    parsed = [tuple(int(part) for part in one.split("@")) for one in case.split(",")]
    return [(max(1, rows // divide), max(2, keys // divide)) for rows, keys in parsed]


def prepared(parsed: list[tuple[int, int]], shape: LayerShape, tiles: Tiles | None) -> tuple[PagedAttention, int]:
    """Return attention prepared for these sequences, and their number of blocks."""
    rows = sum(count for count, _ in parsed)
    width = max(-(-keys // BLOCK) for _, keys in parsed)
    tables = np.arange(1, 1 + len(parsed) * width, dtype=np.int32).reshape(len(parsed), width)
    programs = programs_on(DEVICE)
    attention = PagedAttention(
        shape, BLOCK, rows=rows, sequences=len(parsed), width=width, programs=programs, device=DEVICE, long_tiles=tiles
    )
    starts = np.concatenate(([0], np.cumsum([count for count, _ in parsed]))).astype(np.int32)
    attention.prepare(starts, np.array([keys for _, keys in parsed], dtype=np.int32), tables)
    return attention, 1 + tables.size


def inputs(
    parsed: list[tuple[int, int]], shape: LayerShape, blocks: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return queries, keys, values and positions."""
    rows = sum(count for count, _ in parsed)
    size = (blocks, shape.kv_heads, BLOCK, shape.head_size)
    keys, values = (torch.randn(size, device=DEVICE, dtype=dtype) for _ in range(2))
    queries = torch.randn(rows, shape.heads, shape.head_size, device=DEVICE, dtype=dtype)
    positions = torch.cat([torch.arange(keys - count, keys) for count, keys in parsed]).int().to(DEVICE)
    return queries, keys, values, positions


def run(name: str, case: str, shape: LayerShape, products: float, tiles: Tiles | None = None) -> Row:
    """Measure one case on the GPU."""
    parsed = sequences(case)
    attention, blocks = prepared(parsed, shape, tiles)
    given = inputs(parsed, shape, blocks, torch.bfloat16)
    duration = seconds(lambda: attention(*given))
    pairs = sum(count * keys - count * (count - 1) // 2 for count, keys in parsed)
    work = 4 * pairs * shape.heads * shape.head_size
    row: Row = {
        "case": name,
        "ms": duration * 1e3,
        "TFLOP/s": work / duration / 1e12,
        "of products": work / duration / products,
    }
    if len(parsed) == 1 and parsed[0][0] == parsed[0][1]:
        q = given[0].transpose(0, 1).unsqueeze(0)
        k, v = (torch.randn(1, shape.kv_heads, parsed[0][1], shape.head_size, device=DEVICE).bfloat16() for _ in "kv")
        row["torch ms"] = 1e3 * seconds(
            lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        )
    return row


def check(name: str, case: str) -> Row:
    """Compare one small case with float64."""
    parsed = sequences(case, divide=64)[:4]
    attention, blocks = prepared(parsed, SMALL, None)
    queries, keys, values, positions = inputs(parsed, SMALL, blocks, torch.float32)
    out = attention(queries, keys, values, positions)
    worst, row = 0.0, 0
    width = (blocks - 1) // len(parsed)
    for sequence, (count, length) in enumerate(parsed):
        held = slice(1 + sequence * width, 1 + (sequence + 1) * width)
        k, v = (part[held].transpose(1, 2).flatten(0, 1)[:length].double() for part in (keys, values))
        for index in range(count):
            sees = length - count + index + 1
            for head in range(SMALL.heads):
                kv = head // (SMALL.heads // SMALL.kv_heads)
                weights = (k[:sees, kv] @ queries[row, head].double() * SMALL.scale).softmax(0)
                worst = max(worst, float((weights @ v[:sees, kv] - out[row, head]).abs().max()))
            row += 1
    return {"case": name, "rows": row, "keys": max(keys for _, keys in parsed), "error": worst}


def main() -> None:
    """Run the command line."""
    chosen = arguments(
        __doc__ or "",
        ("--shape", {"choices": SHAPES, "default": "8B"}),
        ("--case", {"nargs": "+", "help": "own cases"}),
        ("--sweep", {"action": "store_true", "help": "other tiles as well"}),
    )
    cases = {case: case for case in chosen.case} if chosen.case else CASES
    if not HAS_GPU:
        tell([check(name, case) for name, case in cases.items()], as_json=chosen.json)
        return
    products = matrix_rate(torch.bfloat16)
    rows: list[Row] = [{"case": "product", "TFLOP/s": products / 1e12}]
    for name, case in cases.items():
        rows.append(run(name, case, SHAPES[chosen.shape], products))
        if chosen.sweep:
            for tiles in (Tiles(*four) for four in itertools.product((64, 128), (32, 64, 128), (4, 8), (2, 3, 4))):
                try:
                    measured = run(name, case, SHAPES[chosen.shape], products, tiles)
                    rows.append({**measured, "tiles": str(tiles)})
                except Exception as error:  # a case that does not fit is reported; the others run
                    rows.append({"case": name, "tiles": str(tiles), "failed": str(error).splitlines()[0][:80]})
    tell(rows, as_json=chosen.json)


if __name__ == "__main__":
    main()
