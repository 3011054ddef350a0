"""Attention of rows that decode, over the tree that their prompts make: one launch for all its levels, one to merge.

A fixed grid of programs goes through the items of a work list (see `worklist.py`), whose count is read on the device: a
CUDA graph that holds the launch replays for every list that fits its buffers.

Keys and values are (blocks, kv_heads, block, size): the keys that a head has in a block lie together.
"""

import triton
import triton.language as tl


@triton.jit
def make_parts(
    queries,  # (n, heads, size)
    keys,  # (blocks, kv_heads, block, size)
    values,
    out,  # (n, heads, size), for rows of one part
    sums,  # (parts, heads, size) float32
    stats,  # (parts, heads, 2) float32: the largest score, in powers of two, and the sum of the weights
    items,  # (capacity, 8) int32
    count,  # (1,) int32
    order,  # (n,) int32
    starts,  # (n + 1,) int32
    tables,  # (n, width) int32
    lengths,  # (n,) int32
    width,
    scale,
    softcap,
    window,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    CAPPED: tl.constexpr,
    WINDOWED: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Each item's part of its rows' attention. `UPCAST`: products in float32, for Triton's interpreter, whose bfloat16
    arithmetic is wrong."""
    heads: tl.constexpr = KV_HEADS * GROUP
    place = tl.arange(0, ROWS)
    size = tl.arange(0, PADDED)
    key = tl.arange(0, KEYS)
    inside = size < SIZE
    for item in range(tl.program_id(0), tl.load(count), tl.num_programs(0)):
        at = items + item * 8
        first = tl.load(at)
        rows = tl.load(at + 1)
        kv_head = tl.load(at + 2)
        sequence = tl.load(at + 3)
        begin = tl.load(at + 4)
        end = tl.load(at + 5)
        part = tl.load(at + 6)

        local = place // GROUP
        real = local < rows
        row = tl.load(order + first + local, mask=real, other=0)
        head = kv_head * GROUP + place % GROUP
        where = (row * heads + head)[:, None] * SIZE + size[None, :]
        kept = real[:, None] & inside[None, :]
        query = tl.load(queries + where, mask=kept, other=0.0)
        if UPCAST:
            query = query.to(tl.float32)
        seen = tl.full((ROWS,), 0, tl.int32)
        if WINDOWED:
            seen = tl.load(lengths + row, mask=real, other=0) - window

        most = tl.full((ROWS,), float("-inf"), tl.float32)
        weight = tl.zeros((ROWS,), tl.float32)
        total = tl.zeros((ROWS, PADDED), tl.float32)
        for start in range(begin, end, KEYS):
            now = start + key
            there = now < end
            block = tl.load(tables + sequence * width + now // BLOCK, mask=there, other=0).to(tl.int64)
            base = ((block * KV_HEADS + kv_head) * BLOCK + now % BLOCK) * SIZE
            k = tl.load(keys + base[None, :] + size[:, None], mask=there[None, :] & inside[:, None], other=0.0)
            if UPCAST:
                k = k.to(tl.float32)
            scores = tl.dot(query, k, input_precision="ieee") * scale
            if CAPPED:
                scores = softcap * (2.0 / (1.0 + tl.exp2(scores * (-2.0 * 1.4426950408889634) / softcap)) - 1.0)
            visible = there[None, :]
            if WINDOWED:
                visible = visible & (now[None, :] >= seen[:, None])
            scores = tl.where(visible, scores * 1.4426950408889634, float("-inf"))
            larger = tl.maximum(most, tl.max(scores, 1))
            shift = tl.where(larger == float("-inf"), 0.0, larger)  # rows whose window has not begun
            p = tl.exp2(scores - shift[:, None])
            fade = tl.exp2(most - shift)
            weight = weight * fade + tl.sum(p, 1)
            v = tl.load(values + base[:, None] + size[None, :], mask=there[:, None] & inside[None, :], other=0.0)
            if UPCAST:
                v = v.to(tl.float32)
            total = total * fade[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
            most = larger

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
    out,  # (n, heads, size)
    sums,
    stats,
    order,
    starts,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
):
    """One row and head each: its parts, if there are several, weighed by their log-sum-exp."""
    sorted_row = tl.program_id(0)
    head = tl.program_id(1)
    begin = tl.load(starts + sorted_row)
    end = tl.load(starts + sorted_row + 1)
    if end - begin > 1:
        size = tl.arange(0, PADDED)
        inside = size < SIZE
        most = float("-inf")
        for part in range(begin, end):
            most = tl.maximum(most, tl.load(stats + (part * HEADS + head) * 2))
        weight = 0.0
        total = tl.zeros((PADDED,), tl.float32)
        for part in range(begin, end):
            whose = part * HEADS + head
            share = tl.exp2(tl.load(stats + whose * 2) - most)
            weight += share * tl.load(stats + whose * 2 + 1)
            total += share * tl.load(sums + whose * SIZE + size, mask=inside, other=0.0)
        row = tl.load(order + sorted_row)
        where = out + (row * HEADS + head) * SIZE + size
        tl.store(where, (total / weight).to(out.dtype.element_ty), mask=inside)
