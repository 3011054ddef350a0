"""Random batches of decoding rows whose prompts form a tree, and their attention in float64."""

import numpy as np
from numpy.typing import NDArray

from engine.kernels.triton.worklist import WorkList


def batch(seed: int, block_size: int = 16) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return block tables and lengths: trees of depth 0 to 4 with 1 to 8 branches at each node, lengths at and next to
    block boundaries, sometimes rows that end where others continue, and rows of one key."""
    pick = np.random.default_rng(seed)
    fresh = iter(range(1, 1_000_000))
    rows: list[tuple[list[int], int]] = []

    def grow(path: list[int], depth: int) -> None:
        if depth == 0 or len(rows) >= 40:
            tail = int(pick.choice([1, 2, block_size - 1, block_size, block_size + 1, 3 * block_size]))
            own = [next(fresh) for _ in range(-(-tail // block_size))]
            rows.append((path + own, len(path) * block_size + tail))
            return
        below = path + [next(fresh) for _ in range(int(pick.integers(0, 12)))]
        if below and pick.random() < 0.2:
            rows.append((below, len(below) * block_size - int(pick.integers(0, block_size))))
        for _ in range(int(pick.integers(1, 9))):
            grow(below, depth - 1)

    for _ in range(int(pick.integers(1, 3))):
        grow([], int(pick.integers(0, 5)))
    rows = [rows[index] for index in pick.permutation(len(rows))]
    tables = np.zeros((len(rows), max(len(table) for table, _ in rows)), dtype=np.int32)
    for index, (table, _) in enumerate(rows):
        tables[index, : len(table)] = table
    return tables, np.array([length for _, length in rows], dtype=np.int32)


def attend(
    queries: NDArray[np.float64],
    keys: NDArray[np.float64],
    values: NDArray[np.float64],
    tables: NDArray[np.int32],
    lengths: NDArray[np.int32],
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
) -> NDArray[np.float64]:
    """Return attention row by row, (n, heads, size). `queries`: (n, heads, size). `keys`, `values`: (blocks, block,
    kv_heads, size)."""
    n, heads, _ = queries.shape
    block, kv_heads = keys.shape[1:3]
    out = np.zeros_like(queries)
    for row in range(n):
        length = int(lengths[row])
        seen = np.arange(max(0, length - window) if window else 0, length)
        where = tables[row, seen // block], seen % block
        for head in range(heads):
            kv = head // (heads // kv_heads)
            scores = keys[where][:, kv] @ queries[row, head] * scale
            if softcap:
                scores = softcap * np.tanh(scores / softcap)
            weights = np.exp(scores - scores.max())
            out[row, head] = weights @ values[where][:, kv] / weights.sum()
    return out


def execute(
    work: WorkList,
    queries: NDArray[np.float64],
    keys: NDArray[np.float64],
    values: NDArray[np.float64],
    tables: NDArray[np.int32],
    lengths: NDArray[np.int32],
    scale: float,
    window: int = 0,
) -> NDArray[np.float64]:
    """Execute a work list as the kernels do, in float64: items compute parts, and the parts are merged."""
    n, heads, size = queries.shape
    block, kv_heads = keys.shape[1:3]
    group = heads // kv_heads
    places = int(work.starts[-1])
    sums, weights, maximum = (
        np.zeros((places, heads, size)),
        np.zeros((places, heads)),
        np.full((places, heads), -np.inf),
    )
    filled = np.zeros((places, heads), dtype=int)
    for first, rows, kv, sequence, begin, end, part, _ in work.items:
        seen = np.arange(begin, end)
        where = tables[sequence, seen // block], seen % block
        for row in range(first, first + rows):
            own = work.order[row]
            visible = (seen >= lengths[own] - window) if window else np.ones(len(seen), dtype=bool)
            place = work.starts[row] + part
            for head in range(kv * group, (kv + 1) * group):
                filled[place, head] += 1
                scores = np.where(visible, keys[where][:, kv] @ queries[own, head] * scale, -np.inf)
                if visible.any():
                    maximum[place, head] = scores.max()
                    share = np.exp(scores - scores.max())
                    weights[place, head] = share.sum()
                    sums[place, head] = share @ values[where][:, kv]
    assert (filled == 1).all(), "each index of the buffers is written once"
    out = np.zeros_like(queries)
    for row in range(n):
        parts = slice(work.starts[row], work.starts[row + 1])
        share = np.exp(maximum[parts] - maximum[parts].max(axis=0))
        out[work.order[row]] = (share[..., None] * sums[parts]).sum(axis=0) / (share * weights[parts]).sum(axis=0)[
            :, None
        ]
    return out
