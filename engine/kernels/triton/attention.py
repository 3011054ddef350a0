"""Attention over paged KV for decoding rows and for prompts: one launch for all items of a work list, and one to merge.

A fixed grid of programs goes through the items (see `worklist.py`). It reads their count on the device, so a CUDA graph
that holds the launch replays for every list that fits its buffers.

Keys and values are (blocks, kv_heads, block, size): a head's keys in a block are contiguous. Their dtype may be smaller
than that of queries; they are widened when loaded.
"""

import triton
import triton.language as tl


@triton.jit
def _attend(
    query,
    keys,
    values,
    table,
    kv_head,
    start,
    end,
    first_visible,
    position,
    maximum,
    weight,
    total,
    KV_HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    KEYS: tl.constexpr,
    BOUNDED: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOWED: tl.constexpr,
    SCALE: tl.constexpr,
    SOFTCAP: tl.constexpr,
):
    """Return the running softmax after a tile of keys. `BOUNDED`: the tile may extend beyond `end`. `CAUSAL`: rows may
    see only a part of it. `first_visible`: the first key in a row's window."""
    size = tl.arange(0, PADDED)
    inside = size < SIZE
    key_index = start + tl.arange(0, KEYS)
    if BOUNDED:
        exists = key_index < end
        block = tl.load(table + key_index // BLOCK, mask=exists, other=0)
    else:
        exists = key_index >= 0
        block = tl.load(table + key_index // BLOCK)
    base = ((block * KV_HEADS + kv_head) * BLOCK + key_index % BLOCK) * SIZE
    where = base[:, None] + size[None, :]
    if BOUNDED or PADDED > SIZE:
        k = tl.load(keys + where, mask=exists[:, None] & inside[None, :], other=0.0)
    else:
        k = tl.load(keys + where)
    scores = tl.dot(query, tl.trans(k.to(query.dtype)), input_precision="ieee")
    if SOFTCAP > 0:  # tanh(z) is 2 / (1 + exp(-2 z)) - 1
        scores = 2.0 / (1.0 + tl.exp2(scores * (-2.0 * 1.4426950408889634 * SCALE / SOFTCAP))) - 1.0
        scores *= SOFTCAP * 1.4426950408889634
    else:
        scores *= SCALE * 1.4426950408889634
    if BOUNDED or CAUSAL or WINDOWED:
        visible = exists[None, :]
        if CAUSAL:
            visible = visible & (key_index[None, :] <= position[:, None])
        if WINDOWED:
            visible = visible & (key_index[None, :] >= first_visible[:, None])
        scores = tl.where(visible, scores, float("-inf"))
    larger = tl.maximum(maximum, tl.max(scores, 1))
    shift = larger
    if CAUSAL or WINDOWED:
        shift = tl.where(larger == float("-inf"), 0.0, larger)  # rows that have seen no key yet
    p = tl.exp2(scores - shift[:, None])
    rescale = tl.exp2(maximum - shift)
    if BOUNDED or PADDED > SIZE:
        v = tl.load(values + where, mask=exists[:, None] & inside[None, :], other=0.0)
    else:
        v = tl.load(values + where)
    v = v.to(query.dtype)
    total = total * rescale[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
    return larger, weight * rescale + tl.sum(p, 1), total


@triton.jit
def make_parts(
    queries,  # (rows, heads, size)
    keys,  # (blocks, kv_heads, block, size)
    values,
    out,  # (rows, heads, size), for rows of one part
    sums,  # (parts, heads, size) float32
    stats,  # (parts, heads, 2) float32: the largest score, in powers of two, and the sum of the weights
    items,  # (capacity, 8) int32
    count,  # (1,) int32
    order,  # (rows,) int32
    starts,  # (rows + 1,) int32
    tables,  # block ids of all sequences, one after another, int32
    table_starts,  # (n,) int32
    positions,  # (rows,) int32
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SCALE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Compute each item's part of its rows' attention. A `SOFTCAP` of 0 bounds nothing, a `WINDOW` of 0 shows all.
    `UPCAST`: products in float32, for Triton's interpreter, whose bfloat16 arithmetic is wrong."""
    heads: tl.constexpr = KV_HEADS * GROUP
    tile_row = tl.arange(0, ROWS)
    size = tl.arange(0, PADDED)
    inside = size < SIZE
    for item in range(tl.program_id(0), tl.load(count), tl.num_programs(0)):
        item_address = items + item * 8
        first = tl.load(item_address)
        rows = tl.load(item_address + 1)
        kv_head = tl.load(item_address + 2)
        table = tables + tl.load(table_starts + tl.load(item_address + 3))
        begin = tl.load(item_address + 4)
        end = tl.load(item_address + 5)
        part = tl.load(item_address + 6)
        unmasked_end = tl.load(item_address + 7)

        local = tile_row // GROUP
        is_row = local < rows
        row = tl.load(order + first + local, mask=is_row, other=0)
        head = kv_head * GROUP + tile_row % GROUP
        where = (row * heads + head)[:, None] * SIZE + size[None, :]
        loaded = is_row[:, None] & inside[None, :]
        query = tl.load(queries + where, mask=loaded, other=0.0)
        if UPCAST:
            query = query.to(tl.float32)
        position = tl.full((ROWS,), 0, tl.int32)
        if CAUSAL or WINDOW > 0:
            position = tl.load(positions + row, mask=is_row, other=0)
        first_visible = position + 1 - WINDOW

        maximum = tl.full((ROWS,), float("-inf"), tl.float32)
        weight = tl.zeros((ROWS,), tl.float32)
        total = tl.zeros((ROWS, PADDED), tl.float32)
        if CAUSAL:  # tiles that all rows see whole, then tiles of which they see different parts
            for start in range(begin, unmasked_end, KEYS):
                maximum, weight, total = _attend(
                    query, keys, values, table, kv_head, start, end, first_visible, position, maximum, weight, total,
                    KV_HEADS, SIZE, PADDED, BLOCK, KEYS, False, False, WINDOW > 0, SCALE, SOFTCAP,
                )  # fmt: skip
            for start in range(unmasked_end, end, KEYS):
                maximum, weight, total = _attend(
                    query, keys, values, table, kv_head, start, end, first_visible, position, maximum, weight, total,
                    KV_HEADS, SIZE, PADDED, BLOCK, KEYS, True, True, WINDOW > 0, SCALE, SOFTCAP,
                )  # fmt: skip
        else:
            for start in range(begin, end, KEYS):
                maximum, weight, total = _attend(
                    query, keys, values, table, kv_head, start, end, first_visible, position, maximum, weight, total,
                    KV_HEADS, SIZE, PADDED, BLOCK, KEYS, True, False, WINDOW > 0, SCALE, SOFTCAP,
                )  # fmt: skip

        first_part = tl.load(starts + first + local, mask=is_row, other=0)
        is_single = tl.load(starts + first + local + 1, mask=is_row, other=0) - first_part == 1
        whole = total / tl.where(is_single, weight, 1.0)[:, None]
        tl.store(out + where, whole.to(out.dtype.element_ty), mask=loaded & is_single[:, None])
        part_index = (first_part + part) * heads + head
        is_partial = is_row & (is_single == 0)
        tl.store(sums + part_index[:, None] * SIZE + size[None, :], total, mask=loaded & is_partial[:, None])
        tl.store(stats + part_index * 2, maximum, mask=is_partial)
        tl.store(stats + part_index * 2 + 1, weight, mask=is_partial)


@triton.jit
def merge_parts(
    out,  # (rows, heads, size)
    sums,
    stats,
    order,
    starts,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
):
    """Merge the parts of one row and head, if there are several, weighted by their log-sum-exp."""
    tile_row = tl.program_id(0)
    head = tl.program_id(1)
    begin = tl.load(starts + tile_row)
    end = tl.load(starts + tile_row + 1)
    if end - begin > 1:
        size = tl.arange(0, PADDED)
        inside = size < SIZE
        maximum = float("-inf")
        for part in range(begin, end):
            maximum = tl.maximum(maximum, tl.load(stats + (part * HEADS + head) * 2))
        weight = 0.0
        total = tl.zeros((PADDED,), tl.float32)
        for part in range(begin, end):
            part_index = (part * HEADS + head).to(tl.int64)
            share = tl.exp2(tl.load(stats + part_index * 2) - maximum)
            weight += share * tl.load(stats + part_index * 2 + 1)
            total += share * tl.load(sums + part_index * SIZE + size, mask=inside, other=0.0)
        row = tl.load(order + tile_row).to(tl.int64)
        where = out + (row * HEADS + head) * SIZE + size
        tl.store(where, (total / weight).to(out.dtype.element_ty), mask=inside)
