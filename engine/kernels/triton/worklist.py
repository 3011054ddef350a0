"""What a step's attention is divided into: the host's side of the attention kernels. Plain numpy, no GPU.

Rows that decode begin with the same blocks where their requests share a prefix. Sorted by their block tables they are
the leaves of a tree; each inner node is a run of keys that several rows see. A node's keys are read once for all rows
under it, at every level, and each row's parts are merged by their log-sum-exp (the idea of cascade and Hydragen
attention; Ye et al. 2024, Juravsky et al. 2024). Where sharing does not pay, a node's keys go to its children
instead, down to plain paged attention with split keys (Dao et al. 2023), which is what remains when nothing is
shared.

Prompts are divided by rows; where they are too few for all multiprocessors, by keys as well. A tile of theirs uses each
key so often that nothing is gained by sharing between them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

ITEM = 8
"""Numbers of an item: first row, rows, KV head, sequence whose block table holds the keys, first key, end of keys,
which of its rows' parts it makes, and the end of the whole tiles of keys that all its rows see."""


@dataclass(frozen=True)
class Shape:
    """Of the model, the tiles and the GPU.

    `group`: query heads of a KV head. `tile_rows`: query rows of a matrix product, the heads of a group counting as
    rows; `tile_keys`: its keys. `programs`: how many run at a time on all multiprocessors. `element_bytes`: of the KV
    cache. `item_bytes`: what beginning an item costs, as bytes that could have been read meanwhile. `again`: what
    reading keys a second time costs, from the L2 cache, in parts of the first time. The last two are to be measured;
    see docs/kernels.md.
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
    again: float = 0.3
    least_tiles: int = 2

    @property
    def rows(self) -> int:
        """Rows of the batch in one tile."""
        return max(1, self.tile_rows // self.group)

    def tiles(self, rows: int) -> int:
        """Tiles that so many rows of the batch take."""
        return -(-rows // self.rows)

    def pays(self, rows: int, keys: int) -> bool:
        """Whether so many rows should read so many keys together: what is not read again, against what merging one
        more part of each row costs."""
        tiles = self.tiles(rows)
        read = rows - (1 + self.again * (tiles - 1))
        saved = read * keys * 2 * self.head_size * self.element_bytes
        merged = rows * self.group * (self.head_size + 2) * 4 * 2  # written once and read once, in float32
        return saved > merged + tiles * self.item_bytes


@dataclass
class Node:
    """Rows `first` to `last`, in sorted order, `last` not among them, have the keys up to `end` in common. `inside`:
    what they are divided into behind these; nothing, if they are one row."""

    first: int
    last: int
    end: int
    inside: "list[Node]" = field(default_factory=list)


@dataclass(frozen=True)
class Segment:
    """Keys `begin` to `end`, read once for the rows `first` to `last`."""

    first: int
    last: int
    begin: int
    end: int


@dataclass(frozen=True)
class WorkList:
    """order: (n,) int32, rows of the batch as items count them. items: (count, ITEM) int32, longest first. starts: (n
    + 1,) int32: row r's parts have the places starts[r] to starts[r + 1] in the buffers of partial results."""

    order: NDArray[np.int32]
    items: NDArray[np.int32]
    starts: NDArray[np.int32]


def sort_rows(
    tables: NDArray[np.int32], lengths: NDArray[np.int32], block_size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows so that those with the longest common beginnings are neighbours, and how many keys each has in common with
    the one before it, (n,), the first of them 0.

    tables: (n, width) block ids; lengths: (n,) keys, at least 1.
    """
    used = np.arange(tables.shape[1]) * block_size < lengths[:, None]
    known = np.where(used, tables, -1)  # what is behind a row's last key makes it like no other, and unlike none
    order = np.lexsort(known.T[::-1])
    ordered, long = known[order], lengths[order].astype(np.int64)
    same = np.logical_and.accumulate((ordered[1:] == ordered[:-1]) & (ordered[1:] >= 0), axis=1)
    common = np.minimum(same.sum(axis=1) * block_size, np.minimum(long[1:], long[:-1]))
    return order, np.concatenate(([0], common))


def tree(lengths: Sequence[int], common: Sequence[int]) -> Node:
    """The root, which has no keys of its own, over the sorted rows."""
    n = len(lengths)
    stack = [Node(0, n, 0)]
    for row in range(n):
        meets = common[row + 1] if row + 1 < n else 0
        found = Node(row, row + 1, lengths[row])
        while stack[-1].end > meets:
            top = stack.pop()
            top.inside.append(found)
            top.last = row + 1
            found = top
        if stack[-1].end == meets:
            stack[-1].inside.append(found)
        else:
            stack.append(Node(found.first, n, meets, [found]))
    return stack[0]


def segments(root: Node, lengths: Sequence[int], shape: Shape, *, share: bool = True) -> Iterator[Segment]:
    """What is read together, those of more rows before those of fewer that are among them."""
    stack = [(root, 0)]
    while stack:
        node, begin = stack.pop()
        rows = node.last - node.first
        if rows == 1 or (share and begin < node.end and shape.pays(rows, node.end - begin)):
            if begin < node.end:
                yield Segment(node.first, node.last, begin, node.end)
            begin = node.end
        stack += [(inner, begin) for inner in node.inside]


def plan(
    tables: NDArray[np.int32], lengths: NDArray[np.int32], shape: Shape, *, window: int = 0, share: bool = True
) -> WorkList:
    """The work of one layer's attention for rows that decode.

    tables: (n, width) block ids; lengths: (n,) keys that each row sees, its own included, at least 1. `window`: keys
    that a row sees at most, 0 for all. `share` False: every row by itself.
    """
    order, common = sort_rows(tables, lengths, shape.block_size)
    long = lengths[order].tolist()
    found = list(segments(tree(long, common.tolist()), long, shape, share=share))
    if window:
        seen = np.maximum(0, lengths[order].astype(np.int64) - window)
        clipped = [
            Segment(one.first, one.last, max(one.begin, int(seen[one.first : one.last].min())), one.end)
            for one in found
        ]
        found = [one for one in clipped if one.begin < one.end]
    tiles = [-(-(one.end - one.begin) // shape.tile_keys) for one in found]
    heads = shape.kv_heads
    work = sum(count * shape.tiles(one.last - one.first) * heads for one, count in zip(found, tiles, strict=True))
    quota = max(shape.least_tiles, -(-work // shape.programs))
    parts = np.zeros(len(long), dtype=np.int32)
    items: list[list[int]] = []
    for one, count in zip(found, tiles, strict=True):
        pieces = -(-count // quota)
        part = int(parts[one.first])
        for piece in range(pieces):
            begin = one.begin + count * piece // pieces * shape.tile_keys
            end = min(one.end, one.begin + count * (piece + 1) // pieces * shape.tile_keys)
            for first in range(one.first, one.last, shape.rows):
                rows = min(shape.rows, one.last - first)
                items.append([first, rows, 0, int(order[first]), begin, end, part + piece, end])
        parts[one.first : one.last] += pieces
    return WorkList(order.astype(np.int32), _of_all_heads(items, heads), _starts(parts))


def plan_prompts(
    rows: NDArray[np.int32], lengths: NDArray[np.int32], shape: Shape, *, window: int = 0, most_parts: int = 1 << 30
) -> WorkList:
    """The work of one layer's attention for sequences of several rows each, which come one after another.

    rows: (n,) how many; lengths: (n,) keys that the last of them sees, itself included; the one before it sees one
    less. `window`: as for `plan`. Keys are not split where that would make more than `most_parts` parts.
    """
    tile = shape.rows
    wholes: list[tuple[int, int, int, int, int]] = []
    place = 0
    for sequence, (count, length) in enumerate(zip(rows.tolist(), lengths.tolist(), strict=True)):
        for first in range(0, count, tile):
            position = length - count + first
            begin = max(0, position + 1 - window) if window else 0
            wholes.append((place + first, min(tile, count - first), sequence, begin, position))
        place += count
    keys = [-(-(position + size - begin) // shape.tile_keys) for _, size, _, begin, position in wholes]
    quota = max(shape.least_tiles, -(-sum(keys) * shape.kv_heads // shape.programs))
    pieces = [max(1, count // quota) for count in keys]
    if sum(size * count for (_, size, _, _, _), count in zip(wholes, pieces, strict=True)) > most_parts:
        pieces = [1] * len(keys)
    items: list[list[int]] = []
    parts = np.zeros(place, dtype=np.int32)
    for (first, size, sequence, start, position), count, split in zip(wholes, keys, pieces, strict=True):
        for piece in range(split):
            begin = start + count * piece // split * shape.tile_keys
            end = min(position + size, start + count * (piece + 1) // split * shape.tile_keys)
            clear = min(end, begin + max(0, position + 1 - begin) // shape.tile_keys * shape.tile_keys)
            items.append([first, size, 0, sequence, begin, end, piece, clear])
        parts[first : first + size] = split
    return WorkList(np.arange(place, dtype=np.int32), _of_all_heads(items, shape.kv_heads), _starts(parts))


def _of_all_heads(items: list[list[int]], heads: int) -> NDArray[np.int32]:
    """The items of every KV head, longest first."""
    table = np.repeat(np.array(items, dtype=np.int32).reshape(-1, ITEM), heads, axis=0)
    table[:, 2] = np.tile(np.arange(heads, dtype=np.int32), len(items))
    return np.ascontiguousarray(table[np.argsort(table[:, 4] - table[:, 5], kind="stable")])


def _starts(parts: NDArray[np.int32]) -> NDArray[np.int32]:
    return np.concatenate(([0], np.cumsum(parts))).astype(np.int32)
