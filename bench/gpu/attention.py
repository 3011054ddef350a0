"""Decode attention over trees: time, share of the roofline, and comparison with our own plain paged kernel and, where
installed, FlashInfer's cascade.

A case lists the levels of a tree, `fan x keys`: 1x8192,32x64 is one prefix of 8,192 keys and 32 rows with 64 keys of
their own.
"""

import itertools
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray

from bench.gpu import HAS_GPU
from bench.gpu.common import BLOCK, DEVICE, SHAPES, SMALL, Row, arguments, copy_rate, matrix_rate, seconds, tell
from engine.kernels.base import LayerShape
from engine.kernels.triton.paged import PagedAttention, Tiles, programs_on

CASES = {
    "plain": "32x4096",
    "shared": "1x8192,32x64",
    "two levels": "1x4096,4x1024,8x64",
    "three levels": "1x4096,4x2048,4x512,4x64",
    "two levels, small": "1x512,4x256,8x64",
    "three levels, small": "1x256,4x256,4x128,4x64",
    "short": "64x256",
    "barely shared": "1x64,32x512",
    "pairs": "16x1024,2x64",
    "one": "1x32768",
    "many": "1x1024,256x128",
}


@dataclass(frozen=True)
class Case:
    """A batch of decoding rows. `tables`: (rows, blocks). `lengths`: (rows,). `distinct`: number of distinct keys.
    `levels`: for each level, its nodes and the blocks of each node."""

    tables: NDArray[np.int32]
    lengths: NDArray[np.int32]
    distinct: int
    levels: list[tuple[int, int]]


def tree(levels: str, divide: int = 1) -> Case:
    """Return a batch for levels of a tree."""
    parsed = [tuple(int(part) for part in level.split("x")) for level in levels.split(",")]
    parsed = [(fan, max(BLOCK, keys // divide // BLOCK * BLOCK)) for fan, keys in parsed]
    fresh = itertools.count(1)
    paths: list[list[int]] = [[]]
    for fan, keys in parsed:
        paths = [path + [next(fresh) for _ in range(keys // BLOCK)] for path in paths for _ in range(fan)]
    nodes = [(prod(fan for fan, _ in parsed[: index + 1]), keys // BLOCK) for index, (_, keys) in enumerate(parsed)]
    distinct = sum(count * blocks * BLOCK for count, blocks in nodes)
    tables = np.array(paths, dtype=np.int32)
    return Case(tables, np.full(len(paths), tables.shape[1] * BLOCK, dtype=np.int32), distinct, nodes)


def paged(case: Case, shape: LayerShape, tiles: Tiles | None = None) -> PagedAttention:
    """Return attention prepared for a case. `tiles`: override the selected tiles."""
    rows, width = case.tables.shape
    programs = programs_on(DEVICE)
    return PagedAttention(
        shape, BLOCK, rows=rows, sequences=rows, width=width, programs=programs, device=DEVICE, decode_tiles=tiles
    )


def flashinfer(case: Case, shape: LayerShape, dtype: torch.dtype) -> float | None:
    """Return the seconds of FlashInfer's cascade; None if it is not installed, or nothing is shared."""
    if find_spec("flashinfer") is None or len(case.levels) < 2:
        return None
    from flashinfer import MultiLevelCascadeAttentionWrapper

    rows, blocks = len(case.lengths), int(case.tables.max()) + 1
    pool = torch.randn(blocks, 2, shape.kv_heads, BLOCK, shape.head_size, device=DEVICE, dtype=dtype)
    queries = torch.randn(rows, shape.heads, shape.head_size, device=DEVICE, dtype=dtype)
    starts: list[torch.Tensor] = []
    ends: list[torch.Tensor] = []
    pages: list[torch.Tensor] = []
    last: list[torch.Tensor] = []
    begin = 0
    for nodes, each in case.levels:
        own = case.tables[:: rows // nodes, begin : begin + each]
        starts.append(torch.arange(nodes + 1, dtype=torch.int32, device=DEVICE) * (rows // nodes))
        ends.append(torch.arange(nodes + 1, dtype=torch.int32, device=DEVICE) * each)
        pages.append(torch.from_numpy(own.reshape(-1).copy()).to(DEVICE))
        last.append(torch.full((nodes,), BLOCK, dtype=torch.int32, device=DEVICE))
        begin += each
    workspace = torch.empty(256 << 20, dtype=torch.uint8, device=DEVICE)
    wrapper = MultiLevelCascadeAttentionWrapper(len(case.levels), workspace, "HND")
    wrapper.plan(starts, ends, pages, last, shape.heads, shape.kv_heads, shape.head_size, BLOCK, q_data_type=dtype)
    return seconds(lambda: wrapper.run(queries, pool))


def run(name: str, levels: str, shape: LayerShape, copies: float, products: float, tiles: Tiles | None = None) -> Row:
    """Measure one case on the GPU."""
    case, dtype = tree(levels), torch.bfloat16
    rows, width = case.tables.shape
    size = (int(case.tables.max()) + 1, shape.kv_heads, BLOCK, shape.head_size)
    keys, values = (torch.randn(size, device=DEVICE, dtype=dtype) for _ in range(2))
    queries = torch.randn(rows, shape.heads, shape.head_size, device=DEVICE, dtype=dtype)
    positions = torch.from_numpy(case.lengths - 1).to(DEVICE)
    starts = np.arange(rows + 1, dtype=np.int32)
    durations = {}
    for share in (True, False):
        attention = paged(case, shape, tiles)
        attention.prepare(starts, case.lengths, case.tables, share=share)
        durations[share] = seconds(lambda attention=attention: attention(queries, keys, values, positions))
    read = case.distinct * shape.kv_heads * shape.head_size * 2 * dtype.itemsize
    work = 4 * int(case.lengths.sum()) * shape.heads * shape.head_size
    bound = max(read / copies, work / products)
    peer = flashinfer(case, shape, dtype) if tiles is None else None
    return {
        "case": name,
        "rows": rows,
        "keys": width * BLOCK,
        **({} if peer is None else {"FlashInfer us": peer * 1e6, "of its time": durations[True] / peer}),
        "us": durations[True] * 1e6,
        "plain us": durations[False] * 1e6,
        "times plain": durations[False] / durations[True],
        "of roofline": bound / durations[True],
        "GB/s": read / durations[True] / 1e9,
    }


def check(name: str, levels: str) -> Row:
    """Compare one small case with float64."""
    case = tree(levels, divide=32)
    keep = min(8, len(case.lengths))
    case = Case(case.tables[:keep], case.lengths[:keep], case.distinct, case.levels)
    shape = SMALL
    keys, values = torch.randn(2, int(case.tables.max()) + 1, shape.kv_heads, BLOCK, shape.head_size)
    queries = torch.randn(keep, shape.heads, shape.head_size)
    attention = paged(case, shape)
    attention.prepare(np.arange(keep + 1, dtype=np.int32), case.lengths, case.tables)
    out = attention(queries, keys, values, torch.from_numpy(case.lengths - 1))
    worst = 0.0
    for row, table in enumerate(case.tables):
        k, v = (part[torch.from_numpy(table)].transpose(1, 2).flatten(0, 1).double() for part in (keys, values))
        for head in range(shape.heads):
            kv = head // (shape.heads // shape.kv_heads)
            weights = (k[:, kv] @ queries[row, head].double() * shape.scale).softmax(0)
            worst = max(worst, float((weights @ v[:, kv] - out[row, head]).abs().max()))
    parts = int(attention.windows[0].work.starts[-1]) if attention.windows[0].work else 0
    return {"case": name, "rows": keep, "keys": int(case.lengths[0]), "parts": parts, "error": worst}


def main() -> None:
    """Run the command line."""
    chosen = arguments(
        __doc__ or "",
        ("--shape", {"choices": SHAPES, "default": "8B"}),
        ("--case", {"nargs": "+", "help": "own cases, as levels"}),
        ("--sweep", {"action": "store_true", "help": "other tiles as well"}),
    )
    cases = {levels: levels for levels in chosen.case} if chosen.case else CASES
    if not HAS_GPU:
        tell([check(name, levels) for name, levels in cases.items()], as_json=chosen.json)
        return
    copies, products = copy_rate(), matrix_rate(torch.bfloat16)
    rows: list[Row] = [{"case": "copy", "GB/s": copies / 1e9}, {"case": "product", "TFLOP/s": products / 1e12}]
    for name, levels in cases.items():
        rows.append(run(name, levels, SHAPES[chosen.shape], copies, products))
        if chosen.sweep:
            for tiles in (Tiles(*four) for four in itertools.product((16, 64), (32, 64, 128), (4, 8), (2, 3, 4))):
                try:
                    measured = run(name, levels, SHAPES[chosen.shape], copies, products, tiles)
                    rows.append({**measured, "tiles": str(tiles)})
                except Exception as error:  # a case that does not fit is reported; the others run
                    rows.append({"case": name, "tiles": str(tiles), "failed": str(error).splitlines()[0][:80]})
    tell(rows, as_json=chosen.json)


if __name__ == "__main__":
    main()
