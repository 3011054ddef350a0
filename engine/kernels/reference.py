"""The operations in plain torch: the reference, and the fallback."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

from engine.kernels.base import (
    FP8,
    FP8_MAX,
    AttentionBatch,
    DeviceInputs,
    KVTensors,
    LayerShape,
    LayerWeights,
    PackedWeight,
    Positions,
    SampledTokens,
    SamplingRequests,
)
from engine.kernels.sampling import fill_placeholders, sample

_PACK_ROWS = 32
"""Row count for which the packed layout is tuned: a decode batch."""


class _Weight(NamedTuple):
    weight: torch.Tensor
    bias: torch.Tensor | None


class TorchKernels:
    """Reference implementation of `Kernels`. oneDNN packs bfloat16 weights once if it supports bfloat16 on this CPU."""

    def __init__(
        self, shape: LayerShape, dtype: torch.dtype, block_size: int, kv_dtype: torch.dtype | None = None
    ) -> None:
        self._shape = shape
        self._dtype = dtype
        self._block_size = block_size
        self._packs = dtype == torch.bfloat16 and torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        self.name = "torch, packed" if self._packs else "torch"
        self.device, self.kv_dtype, self.qkv_dtype = torch.device("cpu"), kv_dtype or dtype, dtype
        self.recorded_sizes: Sequence[int] = ()
        self.is_batch_invariant = False  # the attention algorithm depends on the shape of the batch
        self._last_sample: SampledTokens | None = None
        self._layout: tuple[AttentionBatch, int, _Layout] | None = None
        """Layout of the last batch: the same for all layers of a step that have the same window."""

    def stage(self, tokens: torch.Tensor, batch: AttentionBatch, logit_rows: torch.Tensor) -> DeviceInputs:
        """See `Kernels.stage`."""
        return DeviceInputs(fill_placeholders(tokens, self._last_sample), batch, logit_rows)

    def run(self, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """See `Kernels.run`."""
        return compute()

    def new_kv(self, layers: int, blocks: int) -> KVTensors:
        """See `Kernels.new_kv`. Each layer: (blocks, kv_heads, block_size, head_size)."""
        return KVTensors.zeros(
            layers, (blocks, self._shape.kv_heads, self._block_size, self._shape.head_size), self.kv_dtype
        )

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> PackedWeight:
        """See `Kernels.pack`. Packing halves the cost of small batches: plain linear packs at every multiplication."""
        if self._packs:
            weight = torch.ops.mkldnn._reorder_linear_weight(weight, _PACK_ROWS)
        return _Weight(weight, bias)

    def linear(self, x: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
        """See `Kernels.linear`."""
        if self._packs:
            result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, *weight, "none", [], "")
            return result
        return F.linear(x, *weight)

    def linear_float32(self, x: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
        """See `Kernels.linear_float32`."""
        return self.linear(x, weight).float()

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x.float(), weight.shape, weight, self._shape.eps)

    def add_rms_norm(
        self, residual: torch.Tensor, x: torch.Tensor | None, weight: torch.Tensor, inner: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See `Kernels.add_rms_norm`."""
        if x is not None:
            residual += x if inner is None else self._norm(x, inner)
        return self._norm(residual, weight).to(self._dtype)

    def rope_and_store(
        self, qkv: torch.Tensor, positions: Positions, keys: torch.Tensor, values: torch.Tensor, batch: AttentionBatch
    ) -> torch.Tensor:
        """See `Kernels.rope_and_store`."""
        heads, kv_heads, size = self._shape.heads, self._shape.kv_heads, self._shape.head_size
        q, k, v = torch.split(qkv.view(len(qkv), -1, size), [heads, kv_heads, kv_heads], dim=1)
        if positions.query_norm is not None:
            q = self._norm(q, positions.query_norm).to(q.dtype)
        if positions.key_norm is not None:
            k = self._norm(k, positions.key_norm).to(k.dtype)
        if positions.rotary is not None:
            angles = positions.rotary[batch.positions].unsqueeze(1)
            q, k = _rotate(q, angles), _rotate(k, angles)
        block, inside = batch.slots // self._block_size, batch.slots % self._block_size
        keys[block, :, inside] = self._to_pool_dtype(k)
        values[block, :, inside] = self._to_pool_dtype(v)
        return q.contiguous()

    def _to_pool_dtype(self, x: torch.Tensor) -> torch.Tensor:
        """Return keys or values in the dtype of the pool."""
        return x.clamp(-FP8_MAX, FP8_MAX).to(FP8) if self.kv_dtype == FP8 else x

    def attention(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        batch: AttentionBatch,
        window: int = 0,
    ) -> torch.Tensor:
        """See `Kernels.attention`. It gathers the blocks and attends over them: decode rows together, other sequences
        one by one."""
        if self._layout is None or self._layout[0] is not batch or self._layout[1] != window:
            self._layout = (batch, window, _Layout.of(batch, self._block_size, window))
        layout = self._layout[2]
        rows, heads, head_size = queries.shape
        kv_heads = self._shape.kv_heads
        out = torch.empty_like(queries)
        if len(layout.decode_rows):
            grouped = queries[layout.decode_rows].view(-1, kv_heads, heads // kv_heads, head_size)
            k, v = (_gather(part, layout.decode_tables).to(queries.dtype) for part in (keys, values))
            attended = self._attend(grouped, k, v, layout.decode_mask)
            out[layout.decode_rows] = attended.reshape(-1, heads, head_size)
        for start, end, length, table, mask in layout.prefills:
            q = queries[start:end].transpose(0, 1).unsqueeze(0)
            k, v = (_gather(part, table.unsqueeze(0))[:, :, :length].to(q.dtype) for part in (keys, values))
            out[start:end] = self._attend(q, k, v, mask)[0].transpose(0, 1)
        return out.view(rows, heads * head_size)

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return attention for q (n, heads, rows, head_size), k and v (n, kv_heads, length, head_size)."""
        shape = self._shape
        if not shape.softcap:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=shape.scale, enable_gqa=True)
        group = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scores = (q @ k.transpose(-1, -2)).float() * shape.scale
        scores = torch.tanh(scores / shape.softcap) * shape.softcap
        return scores.masked_fill(~mask, -torch.inf).softmax(-1).to(v.dtype) @ v

    def gated(self, gate_up: torch.Tensor) -> torch.Tensor:
        """See `Kernels.gated`."""
        gate, up = gate_up.chunk(2, dim=-1)
        return (F.silu(gate) if self._shape.activation == "silu" else F.gelu(gate, approximate="tanh")) * up

    def sample(self, logits: torch.Tensor, requests: SamplingRequests) -> SampledTokens:
        """See `Kernels.sample`."""
        self._last_sample = sample(logits.numpy(), requests)
        return self._last_sample

    def fuse(self, layers: Sequence[LayerWeights], kv: KVTensors) -> None:
        """See `Kernels.fuse`."""


def _rotate(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotate x (rows, heads, size) by angles (rows, 1, rotated)."""
    rotated = angles.shape[-1]
    cosine, sine = angles.chunk(2, dim=-1)
    first, second = x[..., :rotated].float().chunk(2, dim=-1)
    turned = torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1).to(x.dtype)
    return torch.cat((turned, x[..., rotated:]), dim=-1)


def _gather(cache: torch.Tensor, tables: torch.Tensor) -> torch.Tensor:
    """Return the blocks of tables (n, width) as (n, kv_heads, width * block_size, head_size)."""
    _, kv_heads, block_size, head_size = cache.shape
    n, width = tables.shape
    blocks = cache.index_select(0, tables.reshape(-1)).view(n, width, kv_heads, block_size, head_size)
    return blocks.transpose(1, 2).reshape(n, kv_heads, width * block_size, head_size)


def _mask(rows: int, length: int, window: int) -> torch.Tensor:
    """Return a mask (rows, length) bool: the last row sees all keys, or the last `window` of them; each row before it
    one less."""
    mask = torch.ones(rows, length, dtype=torch.bool).tril(diagonal=length - rows)
    return mask.triu(diagonal=length - rows - window + 1) if window else mask


@dataclass(frozen=True)
class _Layout:
    """A batch split into sequences of one row, which are computed together, and longer ones, which are computed one by
    one."""

    decode_rows: torch.Tensor
    decode_tables: torch.Tensor
    decode_mask: torch.Tensor
    prefills: list[tuple[int, int, int, torch.Tensor, torch.Tensor]]

    @classmethod
    def of(cls, batch: AttentionBatch, block_size: int, window: int) -> "_Layout":
        starts, lengths = batch.query_starts.tolist(), batch.lengths.tolist()
        decodes = [n for n in range(len(lengths)) if starts[n + 1] - starts[n] == 1]
        longest = max((lengths[n] for n in decodes), default=0)
        tables = batch.block_tables[decodes, : -(-longest // block_size)]
        place = torch.arange(tables.shape[1] * block_size)
        visible = batch.lengths[decodes].unsqueeze(1)
        seen = place < visible
        if window:
            seen &= place >= visible - window
        return cls(
            decode_rows=torch.tensor([starts[n] for n in decodes], dtype=torch.int64),
            decode_tables=tables,
            decode_mask=seen[:, None, None, :],
            prefills=[
                (
                    starts[n],
                    starts[n + 1],
                    lengths[n],
                    batch.block_tables[n, : -(-lengths[n] // block_size)],
                    _mask(starts[n + 1] - starts[n], lengths[n], window),
                )
                for n in range(len(lengths))
                if starts[n + 1] - starts[n] > 1
            ],
        )
