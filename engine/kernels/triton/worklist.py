"""Division of a step's attention into work items: the host side of the attention kernels. Plain numpy, no GPU.

Decoding rows begin with the same blocks if their requests share a prefix. Sorted by their block tables, they are the
leaves of a tree; each inner node is a run of keys that several rows see. A node's keys are read once for all rows below
it, at every level, and each row's parts are merged by their log-sum-exp (the idea of cascade and Hydragen attention; Ye
et al. 2024, Juravsky et al. 2024). Where sharing does not pay, a node's keys go to its children instead, down to plain
paged attention with split keys (Dao et al. 2023), which remains when nothing is shared.

Prompts are divided by rows; if they are too few for all multiprocessors, by keys as well. A prompt tile uses each key
so often that sharing between prompts gains nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

ITEM = 8
"""Number of integers in an item: first row, rows, KV head, sequence whose block table holds the keys, first key, end of
keys, index of the part among those of its rows, and end of the whole key tiles that all its rows see."""


@dataclass(frozen=True)
class Shape:
    """Properties of the model, the tiles and the GPU.

    `group`: number of query heads of a KV head.
    `tile_rows`: query rows of a matrix product, where each head of a group counts as a row; `tile_keys`: its keys.
    `programs`: number that run at a time on all multiprocessors. `element_bytes`: size of a KV element.
    `item_bytes`: cost of starting an item, as bytes that could be read meanwhile.
    `repeat_cost`: cost of reading keys a second time, from the L2 cache, relative to the first time. This and
        `item_bytes` are estimates until they are measured on a GPU; see docs/kernels.md.
    """

    kv_heads: int
    group: int
    head_size: int
    block_size: int
    tile_rows: int
    tile_keys: int
    programs: int
    element_bytes: int = 2
    item_bytes: int = 16_384
    repeat_cost: float = 0.3
    min_tiles: int = 2

    @property
    def rows(self) -> int:
        """Number of the batch's rows in one tile."""
        return max(1, self.tile_rows // self.group)

    def tiles(self, rows: int) -> int:
        """Return the number of tiles for `rows` rows of the batch."""
        return -(-rows // self.rows)

    def is_sharing_cheaper(self, rows: int, keys: int) -> bool:
        """Return whether `rows` rows should read `keys` keys together.

        It saves reads, but each row then has one more part to merge; see `WorkList`.
        """
        tiles = self.tiles(rows)
        read = rows - (1 + self.repeat_cost * (tiles - 1))
        saved = read * keys * 2 * self.head_size * self.element_bytes
        merged = rows * self.group * (self.head_size + 2) * 4 * 2  # one write and one read, in float32
        return saved > merged + tiles * self.item_bytes


@dataclass
class Node:
    """Sorted rows `first` to `last`, exclusive, that have the keys up to `end` in common. `children`: their subdivision
    after these keys; empty for a single row."""

    first: int
    last: int
    end: int
    children: "list[Node]" = field(default_factory=list)


@dataclass(frozen=True)
class Segment:
    """Range of keys: `begin` to `end`, read once for the rows `first` to `last`. All ends are exclusive."""

    first: int
    last: int
    begin: int
    end: int


@dataclass(frozen=True)
class WorkList:
    """Work items of a step. An item is the attention of some rows over a range of keys. Its results for one row are a
    part; a row with several parts needs a merge.

    `order`: (n,) int32, the batch's rows in the order of the items.
    `items`: (count, ITEM) int32, longest first.
    `starts`: (n + 1,) int32. The parts of row r have the indices starts[r] to starts[r + 1], exclusive, in the
        buffers of partial results.
    """

    order: NDArray[np.int32]
    items: NDArray[np.int32]
    starts: NDArray[np.int32]


def sort_rows(
    tables: NDArray[np.int32], lengths: NDArray[np.int32], block_size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return an order of the rows in which those with the longest common beginnings are neighbours, and the number of
    keys that each row has in common with the one before it, (n,), 0 for the first.

    `tables`: (n, width) block ids. `lengths`: (n,) keys, at least 1.
    """
    used = np.arange(tables.shape[1]) * block_size < lengths[:, None]
    known = np.where(used, tables, -1)  # entries after a row's last key compare unequal
    order = np.lexsort(known.T[::-1])
    ordered, ordered_lengths = known[order], lengths[order].astype(np.int64)
    same = np.logical_and.accumulate((ordered[1:] == ordered[:-1]) & (ordered[1:] >= 0), axis=1)
    common = np.minimum(same.sum(axis=1) * block_size, np.minimum(ordered_lengths[1:], ordered_lengths[:-1]))
    return order, np.concatenate(([0], common))


def tree(lengths: Sequence[int], common: Sequence[int]) -> Node:
    """Return the root over the sorted rows. It has no keys of its own."""
    n = len(lengths)
    stack = [Node(0, n, 0)]
    for row in range(n):
        meets = common[row + 1] if row + 1 < n else 0
        node = Node(row, row + 1, lengths[row])
        while stack[-1].end > meets:
            top = stack.pop()
            top.children.append(node)
            top.last = row + 1
            node = top
        if stack[-1].end == meets:
            stack[-1].children.append(node)
        else:
            stack.append(Node(node.first, n, meets, [node]))
    return stack[0]


def segments(root: Node, lengths: Sequence[int], shape: Shape, *, share: bool = True) -> Iterator[Segment]:
    """Yield the ranges of keys to read together. A range of more rows precedes the ranges of fewer rows among them."""
    stack = [(root, 0)]
    while stack:
        node, begin = stack.pop()
        rows = node.last - node.first
        if rows == 1 or (share and begin < node.end and shape.is_sharing_cheaper(rows, node.end - begin)):
            if begin < node.end:
                yield Segment(node.first, node.last, begin, node.end)
            begin = node.end
        stack += [(inner, begin) for inner in node.children]


def plan(
    tables: NDArray[np.int32], lengths: NDArray[np.int32], shape: Shape, *, window: int = 0, share: bool = True
) -> WorkList:
    """Return the work of one layer's attention for decoding rows.

    `tables`: (n, width) block ids. `lengths`: (n,) keys that each row sees, including its own, at least 1.
    `window`: maximum number of keys that a row sees, 0 for all. Without `share`, every row reads alone.
    """
    order, common = sort_rows(tables, lengths, shape.block_size)
    ordered_lengths = lengths[order].tolist()
    shared_segments = list(segments(tree(ordered_lengths, common.tolist()), ordered_lengths, shape, share=share))
    if window:
        first_visible = np.maximum(0, lengths[order].astype(np.int64) - window)
        clipped = [
            Segment(
                segment.first,
                segment.last,
                max(segment.begin, int(first_visible[segment.first : segment.last].min())),
                segment.end,
            )
            for segment in shared_segments
        ]
        shared_segments = [segment for segment in clipped if segment.begin < segment.end]
    tiles = [-(-(segment.end - segment.begin) // shape.tile_keys) for segment in shared_segments]
    heads = shape.kv_heads
    work = sum(
        count * shape.tiles(segment.last - segment.first) * heads
        for segment, count in zip(shared_segments, tiles, strict=True)
    )
    quota = max(shape.min_tiles, -(-work // shape.programs))
    parts = np.zeros(len(ordered_lengths), dtype=np.int32)
    items: list[list[int]] = []
    for segment, count in zip(shared_segments, tiles, strict=True):
        pieces = -(-count // quota)
        part = int(parts[segment.first])
        for piece in range(pieces):
            begin = segment.begin + count * piece // pieces * shape.tile_keys
            end = min(segment.end, segment.begin + count * (piece + 1) // pieces * shape.tile_keys)
            for first in range(segment.first, segment.last, shape.rows):
                rows = min(shape.rows, segment.last - first)
                items.append([first, rows, 0, int(order[first]), begin, end, part + piece, end])
        parts[segment.first : segment.last] += pieces
    return WorkList(order.astype(np.int32), _repeat_for_heads(items, heads), _starts(parts))


def plan_prompts(
    rows: NDArray[np.int32], lengths: NDArray[np.int32], shape: Shape, *, window: int = 0, max_parts: int = 1 << 30
) -> WorkList:
    """Return the work of one layer's attention for consecutive sequences of several rows each.

    `rows`: (n,) number of rows. `lengths`: (n,) keys that the last row sees, including its own; each row before it sees
        one less.
    `window`: as for `plan`. Keys are not split if that would make more than `max_parts` parts.
    """
    tile = shape.rows
    tiles: list[tuple[int, int, int, int, int]] = []
    place = 0
    for sequence, (count, length) in enumerate(zip(rows.tolist(), lengths.tolist(), strict=True)):
        for first in range(0, count, tile):
            position = length - count + first
            begin = max(0, position + 1 - window) if window else 0
            tiles.append((place + first, min(tile, count - first), sequence, begin, position))
        place += count
    keys = [-(-(position + size - begin) // shape.tile_keys) for _, size, _, begin, position in tiles]
    quota = max(shape.min_tiles, -(-sum(keys) * shape.kv_heads // shape.programs))
    pieces = [max(1, count // quota) for count in keys]
    if sum(size * count for (_, size, _, _, _), count in zip(tiles, pieces, strict=True)) > max_parts:
        pieces = [1] * len(keys)
    items: list[list[int]] = []
    parts = np.zeros(place, dtype=np.int32)
    for (first, size, sequence, start, position), count, split in zip(tiles, keys, pieces, strict=True):
        for piece in range(split):
            begin = start + count * piece // split * shape.tile_keys
            end = min(position + size, start + count * (piece + 1) // split * shape.tile_keys)
            unmasked_end = min(end, begin + max(0, position + 1 - begin) // shape.tile_keys * shape.tile_keys)
            items.append([first, size, 0, sequence, begin, end, piece, unmasked_end])
        parts[first : first + size] = split
    return WorkList(np.arange(place, dtype=np.int32), _repeat_for_heads(items, shape.kv_heads), _starts(parts))


def _repeat_for_heads(items: list[list[int]], heads: int) -> NDArray[np.int32]:
    """Return the items of every KV head, longest first."""
    table = np.repeat(np.array(items, dtype=np.int32).reshape(-1, ITEM), heads, axis=0)
    table[:, 2] = np.tile(np.arange(heads, dtype=np.int32), len(items))
    return np.ascontiguousarray(table[np.argsort(table[:, 4] - table[:, 5], kind="stable")])


def _starts(parts: NDArray[np.int32]) -> NDArray[np.int32]:
    return np.concatenate(([0], np.cumsum(parts))).astype(np.int32)
