"""Attention over paged KV, of rows that decode and of prompts: one launch for all items of a work list, one to merge.

A fixed grid of programs goes through the items (see `worklist.py`), whose count is read on the device: a CUDA graph
that holds the launch replays for every list that fits its buffers.

Keys and values are (blocks, kv_heads, block, size): the keys that a head has in a block lie together. They may be of a
smaller type than queries, and are widened as they are read.
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
    seen,
    position,
    most,
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
    """The running softmax after a tile of keys. `BOUNDED`: the tile may go beyond `end`. `CAUSAL`: rows may not see it
    all. `seen`: the first key that a row's window holds."""
    size = tl.arange(0, PADDED)
    inside = size < SIZE
    now = start + tl.arange(0, KEYS)
    if BOUNDED:
        there = now < end
        block = tl.load(table + now // BLOCK, mask=there, other=0)
    else:
        there = now >= 0
        block = tl.load(table + now // BLOCK)
    base = ((block * KV_HEADS + kv_head) * BLOCK + now % BLOCK) * SIZE
    where = base[:, None] + size[None, :]
    if BOUNDED or PADDED > SIZE:
        k = tl.load(keys + where, mask=there[:, None] & inside[None, :], other=0.0)
    else:
        k = tl.load(keys + where)
    scores = tl.dot(query, tl.trans(k.to(query.dtype)), input_precision="ieee")
    if SOFTCAP > 0:  # tanh(z) is 2 / (1 + exp(-2 z)) - 1
        scores = 2.0 / (1.0 + tl.exp2(scores * (-2.0 * 1.4426950408889634 * SCALE / SOFTCAP))) - 1.0
        scores *= SOFTCAP * 1.4426950408889634
    else:
        scores *= SCALE * 1.4426950408889634
    if BOUNDED or CAUSAL or WINDOWED:
        visible = there[None, :]
        if CAUSAL:
            visible = visible & (now[None, :] <= position[:, None])
        if WINDOWED:
            visible = visible & (now[None, :] >= seen[:, None])
        scores = tl.where(visible, scores, float("-inf"))
    larger = tl.maximum(most, tl.max(scores, 1))
    shift = larger
    if CAUSAL or WINDOWED:
        shift = tl.where(larger == float("-inf"), 0.0, larger)  # rows that see nothing yet
    p = tl.exp2(scores - shift[:, None])
    fade = tl.exp2(most - shift)
    if BOUNDED or PADDED > SIZE:
        v = tl.load(values + where, mask=there[:, None] & inside[None, :], other=0.0)
    else:
        v = tl.load(values + where)
    v = v.to(query.dtype)
    total = total * fade[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
    return larger, weight * fade + tl.sum(p, 1), total


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
    """Each item's part of its rows' attention. A `SOFTCAP` of 0 bounds nothing, a `WINDOW` of 0 shows all. `UPCAST`:
    products in float32, for Triton's interpreter, whose bfloat16 arithmetic is wrong."""
    heads: tl.constexpr = KV_HEADS * GROUP
    place = tl.arange(0, ROWS)
    size = tl.arange(0, PADDED)
    inside = size < SIZE
    for item in range(tl.program_id(0), tl.load(count), tl.num_programs(0)):
        at = items + item * 8
        first = tl.load(at)
        rows = tl.load(at + 1)
        kv_head = tl.load(at + 2)
        table = tables + tl.load(table_starts + tl.load(at + 3))
        begin = tl.load(at + 4)
        end = tl.load(at + 5)
        part = tl.load(at + 6)
        clear = tl.load(at + 7)

        local = place // GROUP
        real = local < rows
        row = tl.load(order + first + local, mask=real, other=0)
        head = kv_head * GROUP + place % GROUP
        where = (row * heads + head)[:, None] * SIZE + size[None, :]
        kept = real[:, None] & inside[None, :]
        query = tl.load(queries + where, mask=kept, other=0.0)
        if UPCAST:
            query = query.to(tl.float32)
        position = tl.full((ROWS,), 0, tl.int32)
        if CAUSAL or WINDOW > 0:
            position = tl.load(positions + row, mask=real, other=0)
        seen = position + 1 - WINDOW

        most = tl.full((ROWS,), float("-inf"), tl.float32)
        weight = tl.zeros((ROWS,), tl.float32)
        total = tl.zeros((ROWS, PADDED), tl.float32)
        if CAUSAL:  # whole tiles that all rows see, then those of which they see different parts
            for start in range(begin, clear, KEYS):
                most, weight, total = _attend(
                    query, keys, values, table, kv_head, start, end, seen, position, most, weight, total,
                    KV_HEADS, SIZE, PADDED, BLOCK, KEYS, False, False, WINDOW > 0, SCALE, SOFTCAP,
                )  # fmt: skip
            for start in range(clear, end, KEYS):
                most, weight, total = _attend(
                    query, keys, values, table, kv_head, start, end, seen, position, most, weight, total,
                    KV_HEADS, SIZE, PADDED, BLOCK, KEYS, True, True, WINDOW > 0, SCALE, SOFTCAP,
                )  # fmt: skip
        else:
            for start in range(begin, end, KEYS):
                most, weight, total = _attend(
                    query, keys, values, table, kv_head, start, end, seen, position, most, weight, total,
                    KV_HEADS, SIZE, PADDED, BLOCK, KEYS, True, False, WINDOW > 0, SCALE, SOFTCAP,
                )  # fmt: skip

        own = tl.load(starts + first + local, mask=real, other=0)
        alone = tl.load(starts + first + local + 1, mask=real, other=0) - own == 1
        whole = total / tl.where(alone, weight, 1.0)[:, None]
        tl.store(out + where, whole.to(out.dtype.element_ty), mask=kept & alone[:, None])
        whose = (own + part) * heads + head
        partly = real & (alone == 0)
        tl.store(sums + whose[:, None] * SIZE + size[None, :], total, mask=kept & partly[:, None])
        tl.store(stats + whose * 2, most, mask=partly)
        tl.store(stats + whose * 2 + 1, weight, mask=partly)


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
    """One row and head each: its parts, if there are several, weighed by their log-sum-exp."""
    place = tl.program_id(0)
    head = tl.program_id(1)
    begin = tl.load(starts + place)
    end = tl.load(starts + place + 1)
    if end - begin > 1:
        size = tl.arange(0, PADDED)
        inside = size < SIZE
        most = float("-inf")
        for part in range(begin, end):
            most = tl.maximum(most, tl.load(stats + (part * HEADS + head) * 2))
        weight = 0.0
        total = tl.zeros((PADDED,), tl.float32)
        for part in range(begin, end):
            whose = (part * HEADS + head).to(tl.int64)
            share = tl.exp2(tl.load(stats + whose * 2) - most)
            weight += share * tl.load(stats + whose * 2 + 1)
            total += share * tl.load(sums + whose * SIZE + size, mask=inside, other=0.0)
        row = tl.load(order + place).to(tl.int64)
        where = out + (row * HEADS + head) * SIZE + size
        tl.store(where, (total / weight).to(out.dtype.element_ty), mask=inside)
