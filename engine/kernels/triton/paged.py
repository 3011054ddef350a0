"""Attention of a step over paged KV: buffers of fixed size, a plan on the host, one or two launches, and a merge."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from engine.kernels.base import LayerShape
from engine.kernels.triton.attention import make_parts, merge_parts
from engine.kernels.triton.buffers import Mirror
from engine.kernels.triton.worklist import ITEM, Shape, WorkList, plan, plan_prompts

_MIN_TILE_ROWS = 16
"""Minimum number of rows of a tile, which the matrix units of every GPU support."""


@dataclass(frozen=True)
class Tiles:
    """Compile-time sizes of `make_parts`. `rows`, `keys`: of a tile; `warps`, `stages`: of a program."""

    rows: int
    keys: int
    warps: int
    stages: int


_PRECISE = Tiles(16, 32, 4, 2)
"""Tiles for float32, whose products use no matrix units: for comparisons only."""


def tiles_for(group: int, head_size: int, rows: int, element_bytes: int = 2, *, narrow: bool = False) -> Tiles:
    """Return the tiles for `rows` decoding rows.

    Hopper's matrix units need 64 rows; then fewer keys fit into the registers. `narrow`: keys have 8 bits, whose
    conversion takes registers.
    """
    large = padded(head_size) > 128
    if element_bytes > 2:
        return _PRECISE
    if rows * group <= _MIN_TILE_ROWS or (large and narrow):
        return Tiles(_MIN_TILE_ROWS, 32 if large else 64, 8 if large else 4, 3)
    return Tiles(64, 32, 8 if large else 4, 2 if large else 3)


def prompt_tiles(head_size: int, element_bytes: int = 2, *, narrow: bool = False) -> Tiles:
    """Return the tiles for prompts, which are bound by products: as many rows as fit, so that each loaded key is used
    often."""
    if element_bytes > 2:
        return _PRECISE
    if padded(head_size) > 128:
        return Tiles(32 if narrow else 64, 32, 8, 2)
    return Tiles(128, 32 if head_size > 64 else 64, 8, 3)


_PROGRAMS_EACH = 2
"""Number of attention programs that a multiprocessor runs at a time."""


def programs_on(device: torch.device) -> int:
    """Return the number of programs that all multiprocessors run at a time; a few on Triton's interpreter."""
    if device.type != "cuda":
        return 4
    return _PROGRAMS_EACH * torch.cuda.get_device_properties(device).multi_processor_count


def padded(size: int) -> int:
    """Return the next power of two."""
    return 1 << (size - 1).bit_length()


class WindowWork:
    """Work of a step's attention, for all layers with the same sliding window; 0 for none.

    Rows have places: first those that decode, in the order of the tree, then those of prompts.
    """

    def __init__(self, window: int, *, rows: int, decoding: int, prompts: int, device: torch.device) -> None:
        """Allocate the buffers. `rows`: maximum number of places. `decoding`, `prompts`: maximum number of items of
        either kind."""
        self.window = window
        self.decode_items = Mirror(decoding * ITEM, torch.int32, device)
        self.prompt_items = Mirror(prompts * ITEM, torch.int32, device)
        self.counts = Mirror(2, torch.int32, device)
        self.order = Mirror(rows, torch.int32, device)
        self.starts = Mirror(rows + 1, torch.int32, device)
        self.is_split = False
        """Whether rows of prompts have several parts."""
        self.work: WorkList | None = None
        """Work of the decoding rows in the step prepared last."""


@dataclass(frozen=True)
class _BatchArrays:
    """Arguments of `prepare`. `rows`, `counts`: first row and number of rows of each sequence. `decoding`, `prompts`:
    indices of the sequences with one row, and with more."""

    rows: NDArray[np.int32]
    counts: NDArray[np.int32]
    lengths: NDArray[np.int32]
    tables: NDArray[np.int32]
    decoding: NDArray[np.int64]
    prompts: NDArray[np.int64]
    share: bool


class PagedAttention:
    """Attention for steps of up to `rows` rows of `sequences` sequences, whose tables have up to `width` blocks each.
    The buffers are the same for every step, so that a CUDA graph can replay the launches."""

    def __init__(
        self,
        shape: LayerShape,
        block_size: int,
        *,
        rows: int,
        sequences: int,
        width: int,
        programs: int,
        device: torch.device,
        element_bytes: int = 2,
        narrow: bool = False,
        upcast: bool = False,
        decode_tiles: Tiles | None = None,
        long_tiles: Tiles | None = None,
    ) -> None:
        """Allocate the buffers.

        `element_bytes`: size of a query element. `narrow`: whether keys have 8 bits. `programs`: number that run at a
            time. `upcast`: see `make_parts`.
        `decode_tiles`, `long_tiles`: override the selected tiles, for measurements.
        """
        self._shape, self._block, self._programs, self._upcast = shape, block_size, programs, upcast
        self._group = shape.heads // shape.kv_heads
        self._rows, self._sequences = rows, sequences
        self._device = device
        self._decode_parts = 4 * sequences + programs
        self._element, self._narrow = element_bytes, narrow
        self._decode_tiles = decode_tiles
        self._prompt_tiles = self._tiles_for_group(
            long_tiles or prompt_tiles(shape.head_size, element_bytes, narrow=narrow)
        )
        self._prompt_rows = max(1, self._prompt_tiles.rows // self._group)
        self._prompt_parts = (programs // shape.kv_heads + 1) * self._prompt_rows
        tiles = rows // self._prompt_rows + sequences + programs
        self._decode_items, self._prompt_items = shape.kv_heads * self._decode_parts, shape.kv_heads * tiles
        self._tables = Mirror(sequences * width, torch.int32, device)
        self._table_starts = Mirror(sequences, torch.int32, device)
        parts = self._decode_parts + self._prompt_parts
        self._sums = torch.zeros(parts, shape.heads, shape.head_size, dtype=torch.float32, device=device)
        self._stats = torch.zeros(parts, shape.heads, 2, dtype=torch.float32, device=device)
        self.windows: dict[int, WindowWork] = {}
        self._arrays: _BatchArrays | None = None
        self._tiles = self._tiles_for(1)
        self._decoding = self._prompting = 0

    def prepare(
        self,
        query_starts: NDArray[np.int32],
        lengths: NDArray[np.int32],
        tables: NDArray[np.int32],
        *,
        places: int | None = None,
        share: bool = True,
    ) -> None:
        """Plan a step and send the plan to the device. Arrays are those of `AttentionBatch`, in numpy.

        `places`: number of decoding rows for which the kernels are launched, if more than there are. `share`: whether
        decoding rows read common keys together.
        """
        used = -(-lengths // self._block)
        self._tables.send(*(table[:blocks] for table, blocks in zip(tables, used.tolist(), strict=True)))
        self._table_starts.send(np.cumsum(used) - used)
        counts = np.diff(query_starts)
        decoding = np.flatnonzero(counts == 1)
        prompts = np.flatnonzero(counts > 1)
        self._arrays = _BatchArrays(query_starts[:-1], counts, lengths, tables, decoding, prompts, share)
        self._decoding = max(len(decoding), places or 0)
        self._prompting = int(counts[prompts].sum())
        self._tiles = self._tiles_for(self._decoding if share else 1)
        for window in self.windows.values():
            self._divide(self._arrays, window)

    def _divide(self, arrays: "_BatchArrays", window_work: WindowWork) -> None:
        decoding, prompts = arrays.decoding, arrays.prompts
        work = self._plan(arrays.tables[decoding], arrays.lengths[decoding], window_work.window, share=arrays.share)
        work.items[:, 3] = decoding[work.items[:, 3]]
        counts = arrays.counts[prompts]
        shape = self._shape_for(self._prompt_tiles, min_tiles=4)
        whole = plan_prompts(
            counts, arrays.lengths[prompts], shape, window=window_work.window, max_parts=self._prompt_parts
        )
        window_work.is_split = int(whole.starts[-1]) > self._prompting
        whole.items[:, 0] += self._decoding
        whole.items[:, 3] = prompts[whole.items[:, 3]]
        window_work.work = work
        window_work.decode_items.send(work.items.reshape(-1))
        window_work.prompt_items.send(whole.items.reshape(-1))
        window_work.counts.send([len(work.items), len(whole.items)])
        absent = self._decoding - len(decoding)  # places without a row have no parts
        rows = np.repeat(arrays.rows[prompts] - np.cumsum(counts) + counts, counts) + whole.order
        window_work.order.send(arrays.rows[decoding][work.order], [0] * absent, rows)
        parts = work.starts[-1:]
        window_work.starts.send(work.starts, np.repeat(parts, absent), whole.starts[1:] + parts)

    def _tiles_for(self, rows: int) -> Tiles:
        size = self._shape.head_size
        return self._tiles_for_group(
            self._decode_tiles or tiles_for(self._group, size, rows, self._element, narrow=self._narrow)
        )

    def _tiles_for_group(self, tiles: Tiles) -> Tiles:
        """Return tiles that hold at least one row with all query heads of a KV head."""
        return replace(tiles, rows=max(tiles.rows, padded(self._group)))

    def _shape_for(self, tiles: Tiles, min_tiles: int) -> Shape:
        return Shape(
            self._shape.kv_heads,
            self._group,
            self._shape.head_size,
            self._block,
            tiles.rows,
            tiles.keys,
            self._programs,
            min_tiles=min_tiles,
        )

    def _plan(self, tables: NDArray[np.int32], lengths: NDArray[np.int32], window: int, *, share: bool) -> WorkList:
        """Plan the decoding rows. If the plan exceeds the buffers, split keys less, and finally share nothing."""
        if not len(lengths):
            nothing = np.zeros(1, dtype=np.int32)
            return WorkList(nothing[:0], np.empty((0, ITEM), dtype=np.int32), nothing)
        for min_tiles, shares in ((2, share), (8, share), (1 << 20, share), (1 << 20, False)):
            work = plan(tables, lengths, self._shape_for(self._tiles, min_tiles), window=window, share=shares)
            if len(work.items) <= self._decode_items and work.starts[-1] <= self._decode_parts:
                return work
        raise AssertionError("one part a row fits always")

    def __call__(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        positions: torch.Tensor,
        window: int = 0,
    ) -> torch.Tensor:
        """Return attention, (rows, heads, size).

        `queries`: (rows, heads, size), as prepared, or more rows. `keys`, `values`: (blocks, kv_heads, block, size).
        `positions`: (rows,) int32.
        """
        if window not in self.windows:
            self.windows[window] = window_work = WindowWork(
                window,
                rows=self._rows + self._sequences,
                decoding=self._decode_items,
                prompts=self._prompt_items,
                device=self._device,
            )
            assert self._arrays is not None, "a step is prepared before it is run"
            self._divide(self._arrays, window_work)
        shape, window_work = self._shape, self.windows[window]
        out = torch.empty_like(queries)
        size = padded(shape.head_size)
        for tiles, items, which, rows in (
            (self._tiles, window_work.decode_items, 0, self._decoding),
            (self._prompt_tiles, window_work.prompt_items, 1, self._prompting),
        ):
            if not rows:
                continue
            make_parts[(self._programs,)](
                queries,
                keys,
                values,
                out,
                self._sums,
                self._stats,
                items.tensor,
                window_work.counts.tensor[which:],
                window_work.order.tensor,
                window_work.starts.tensor,
                self._tables.tensor,
                self._table_starts.tensor,
                positions,
                KV_HEADS=shape.kv_heads,
                GROUP=self._group,
                SIZE=shape.head_size,
                PADDED=size,
                BLOCK=self._block,
                ROWS=tiles.rows,
                KEYS=tiles.keys,
                CAUSAL=which == 1,
                WINDOW=window,
                SCALE=shape.scale,
                SOFTCAP=shape.softcap,
                UPCAST=self._upcast,
                num_warps=tiles.warps,
                num_stages=tiles.stages,
            )
        merging = self._decoding + (self._prompting if window_work.is_split else 0)
        if merging:
            merge_parts[(merging, shape.heads)](
                out,
                self._sums,
                self._stats,
                window_work.order.tensor,
                window_work.starts.tensor,
                HEADS=shape.heads,
                SIZE=shape.head_size,
                PADDED=size,
                num_warps=1,
            )
        return out
