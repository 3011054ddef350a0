"""The small operations between a layer's matrix products: each reads its inputs once and writes its results once."""

import triton
import triton.language as tl

GATED_BLOCK = 1024


def warps(size: int) -> int:
    """Return the number of warps for a program that holds `size` elements."""
    return min(16, max(1, size // 512))


@triton.jit
def _scaled(x, count, eps):
    """Return the factor of an RMS norm. `x`: float32, 0 outside of the row."""
    return tl.rsqrt(tl.sum(x * x, 0) / count + eps)


@triton.jit
def add_rms_norm(
    residual,  # (rows, hidden) float32, changed in place
    x,  # (rows, hidden) float32
    weight,  # (hidden,) float32
    inner,  # (hidden,) float32
    out,  # (rows, hidden)
    hidden,
    eps,
    ADDS: tl.constexpr,
    INNER: tl.constexpr,
    PADDED: tl.constexpr,
):
    """Add to the residual of one row, and compute the norm of the sum. In some families the addend goes through a norm
    of its own first."""
    offsets = tl.arange(0, PADDED)
    inside = offsets < hidden
    where = tl.program_id(0).to(tl.int64) * hidden + offsets
    total = tl.load(residual + where, mask=inside, other=0.0)
    if ADDS:
        added = tl.load(x + where, mask=inside, other=0.0)
        if INNER:
            added *= _scaled(added, hidden, eps) * tl.load(inner + offsets, mask=inside, other=0.0)
        total += added
        tl.store(residual + where, total, mask=inside)
    total *= _scaled(total, hidden, eps) * tl.load(weight + offsets, mask=inside, other=0.0)
    tl.store(out + where, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def rope_and_store(
    qkv,  # (rows, (heads + 2 * kv_heads) * size)
    positions,  # (rows,) int32
    slots,  # (rows,) int32
    rotary,  # (window, ROTATED) float32: cosines, then sines
    query_norm,  # (size,) float32
    key_norm,
    queries,  # (rows, heads, size)
    keys,  # (blocks, kv_heads, block, size)
    values,
    eps,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    PADDED_HEADS: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    ROTATED: tl.constexpr,
    QUERY_NORM: tl.constexpr,
    KEY_NORM: tl.constexpr,
    FP8: tl.constexpr,
):
    """Normalise and rotate queries and keys of one row, all heads, and write queries, keys and values to their
    places."""
    row = tl.program_id(0)
    kind = qkv.dtype.element_ty
    turns: tl.constexpr = HEADS + KV_HEADS
    heads: tl.constexpr = turns + KV_HEADS
    head = tl.arange(0, PADDED_HEADS)[:, None]
    offsets = tl.arange(0, PADDED)[None, :]
    half: tl.constexpr = ROTATED // 2
    other = tl.where(offsets < half, offsets + half, tl.where(offsets < ROTATED, offsets - half, offsets))
    inside = (head < heads) & (offsets < SIZE)
    source = qkv + (row.to(tl.int64) * heads + head) * SIZE
    x = tl.load(source + offsets, mask=inside, other=0.0).to(tl.float32)
    partner = tl.load(source + other, mask=inside, other=0.0).to(tl.float32)
    if QUERY_NORM or KEY_NORM:
        scale = tl.rsqrt(tl.sum(x * x, 1) / SIZE + eps)[:, None]
        if QUERY_NORM:
            mine = inside & (head < HEADS)
            x = tl.where(mine, x * scale * tl.load(query_norm + offsets, mask=offsets < SIZE, other=0.0), x)
            partner = tl.where(
                mine, partner * scale * tl.load(query_norm + other, mask=offsets < SIZE, other=0.0), partner
            )
        if KEY_NORM:
            mine = inside & (head >= HEADS) & (head < turns)
            x = tl.where(mine, x * scale * tl.load(key_norm + offsets, mask=offsets < SIZE, other=0.0), x)
            partner = tl.where(
                mine, partner * scale * tl.load(key_norm + other, mask=offsets < SIZE, other=0.0), partner
            )
        x, partner = x.to(kind).to(tl.float32), partner.to(kind).to(tl.float32)
    if ROTATED > 0:
        turned = offsets < ROTATED
        angle = rotary + tl.load(positions + row).to(tl.int64) * ROTATED + offsets % half
        cosine = tl.load(angle, mask=turned, other=1.0)
        sine = tl.load(angle + half, mask=turned, other=0.0)
        x = tl.where(head < turns, x * cosine + tl.where(offsets < half, -partner, partner) * sine, x)
    result = x.to(kind)
    tl.store(queries + (row.to(tl.int64) * HEADS + head) * SIZE + offsets, result, mask=inside & (head < HEADS))
    slot = tl.load(slots + row).to(tl.int64)
    place = ((slot // BLOCK * KV_HEADS + (head + KV_HEADS - HEADS) % KV_HEADS) * BLOCK + slot % BLOCK) * SIZE + offsets
    is_key = inside & (head >= HEADS) & (head < turns)
    stored = tl.minimum(tl.maximum(x, -448.0), 448.0).to(keys.dtype.element_ty) if FP8 else result
    tl.store(keys + place, stored, mask=is_key)
    tl.store(values + place, stored, mask=inside & (head >= turns))


@triton.jit
def gated(
    gate_up,  # (rows, 2 * intermediate)
    out,  # (rows, intermediate)
    intermediate,
    GELU: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Multiply the activation of a row's first half by its second half."""
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < intermediate
    gate = tl.load(gate_up + row * 2 * intermediate + offsets, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * intermediate + intermediate + offsets, mask=inside, other=0.0).to(tl.float32)
    if GELU:  # in its tanh form: tanh(z) is 2 * sigmoid(2 z) - 1, and so the whole is gate * sigmoid(2 z)
        z = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
        gate = gate / (1.0 + tl.exp(-2.0 * z))
    else:
        gate = gate / (1.0 + tl.exp(-gate))
    tl.store(out + row * intermediate + offsets, (gate * up).to(out.dtype.element_ty), mask=inside)
