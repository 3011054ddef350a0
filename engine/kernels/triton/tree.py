"""Decode attention over trees: buffers of fixed size, a plan on the host, two launches."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from engine.kernels.triton.decode import make_parts, merge_parts
from engine.kernels.triton.worklist import ITEM, Shape, WorkList, plan

_LEAST_ROWS = 16
"""Of a tile: what the matrix units of every GPU take."""


@dataclass(frozen=True)
class Tiles:
    """How `make_parts` is compiled. `rows`, `keys`: of a tile; `warps`, `stages`: of a program."""

    rows: int
    keys: int
    warps: int
    stages: int


def tiles_for(group: int, head_size: int, widest: int) -> Tiles:
    """For a batch whose widest node has so many rows. Hopper's matrix units want 64 rows; fewer keys fit into the
    registers then."""
    large = triton_size(head_size) > 128
    if widest * group <= _LEAST_ROWS:
        return Tiles(_LEAST_ROWS, 32 if large else 64, 8 if large else 4, 3)
    return Tiles(64, 32, 8 if large else 4, 2 if large else 3)


def triton_size(size: int) -> int:
    """The power of two that holds it."""
    return 1 << (size - 1).bit_length()


class TreeAttention:
    """Buffers for up to `rows` rows of up to `width` blocks, and so many parts; the same for every step, so that a CUDA
    graph can replay the launches."""

    def __init__(
        self,
        *,
        heads: int,
        kv_heads: int,
        head_size: int,
        block_size: int,
        rows: int,
        width: int,
        programs: int,
        device: torch.device,
        parts: int | None = None,
    ) -> None:
        self._heads, self._kv_heads, self._size, self._block = heads, kv_heads, head_size, block_size
        self._programs, self._rows, self._width = programs, rows, width
        self._parts = parts or 4 * rows + programs
        self._capacity = kv_heads * self._parts

        def empty(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.items, self.count = empty(self._capacity, ITEM), empty(1)
        self.order, self.starts = empty(rows), empty(rows + 1)
        self.tables, self.lengths = empty(rows, width), empty(rows)
        self.sums = empty(self._parts, heads, head_size, dtype=torch.float32)
        self.stats = empty(self._parts, heads, 2, dtype=torch.float32)
        self._tiles = Tiles(_LEAST_ROWS, 64, 4, 3)
        self._window = 0

    def prepare(
        self, tables: NDArray[np.int32], lengths: NDArray[np.int32], *, window: int = 0, share: bool = True
    ) -> WorkList:
        """Plans a step and copies the plan to the device. tables: (n, at most width) block ids; lengths: (n,).

        Where the plan needs more room than there is, keys are split less, and at last nothing is shared.
        """
        n, width = tables.shape
        group = self._heads // self._kv_heads
        self._tiles, self._window = tiles_for(group, self._size, n if share else 1), window
        for least in (2, 8, 1 << 20):
            for sharing in {share, share and least < 1 << 20}:
                shape = Shape(
                    self._kv_heads,
                    group,
                    self._size,
                    self._block,
                    self._tiles.rows,
                    self._tiles.keys,
                    self._programs,
                    least_tiles=least,
                )
                work = plan(tables, lengths, shape, window=window, share=sharing)
                if len(work.items) <= self._capacity and work.starts[-1] <= self._parts:
                    break
            else:
                continue
            break
        self.items[: len(work.items)].copy_(torch.from_numpy(work.items))
        self.count.fill_(len(work.items))
        self.order[:n].copy_(torch.from_numpy(work.order))
        self.starts[: n + 1].copy_(torch.from_numpy(work.starts))
        self.starts[n + 1 :].fill_(int(work.starts[-1]))  # rows that are not there have no parts
        self.tables[:n, :width].copy_(torch.from_numpy(tables))
        self.lengths[:n].copy_(torch.from_numpy(lengths))
        return work

    def __call__(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        *,
        scale: float,
        softcap: float = 0.0,
        upcast: bool = False,
    ) -> torch.Tensor:
        """queries: (n, heads, size), n as prepared; keys, values: (blocks, kv_heads, block, size). Returns (n, heads,
        size)."""
        out = torch.empty_like(queries)
        padded = triton_size(self._size)
        make_parts[(self._programs,)](
            queries,
            keys,
            values,
            out,
            self.sums,
            self.stats,
            self.items,
            self.count,
            self.order,
            self.starts,
            self.tables,
            self.lengths,
            self._width,
            scale,
            softcap,
            self._window,
            KV_HEADS=self._kv_heads,
            GROUP=self._heads // self._kv_heads,
            SIZE=self._size,
            PADDED=padded,
            BLOCK=self._block,
            ROWS=self._tiles.rows,
            KEYS=self._tiles.keys,
            CAPPED=softcap > 0,
            WINDOWED=self._window > 0,
            UPCAST=upcast,
            num_warps=self._tiles.warps,
            num_stages=self._tiles.stages,
        )
        merge_parts[(queries.shape[0], self._heads)](
            out,
            self.sums,
            self.stats,
            self.order,
            self.starts,
            HEADS=self._heads,
            SIZE=self._size,
            PADDED=padded,
            num_warps=1,
        )
        return out
