"""The operations in plain torch: the reference, and what runs where nothing better does."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F

from engine.kernels.base import AttentionBatch, KVTensors, LayerWeights, Packed

_PACK_ROWS = 32
"""The row count that the packed layout is tuned for: a decode batch."""


class TorchKernels:
    """See `Kernels`. Weights in bfloat16 are packed once with oneDNN where it has bfloat16 on this CPU."""

    def __init__(self, dtype: torch.dtype, kv_heads: int, head_size: int, block_size: int) -> None:
        self._dtype = dtype
        self._block_shape = (kv_heads, block_size, head_size)
        self._packs = dtype == torch.bfloat16 and torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        self.name = "torch, packed" if self._packs else "torch"
        self.batch_invariant = False  # attention is chosen by the shape of the batch
        self._layout: tuple[AttentionBatch, _Layout] | None = None
        """The last batch's: the same for all layers of a step."""

    def linear_is_batch_invariant(self) -> bool:
        """Tries it: oneDNN promises nothing, and chooses its code by CPU and number of rows."""
        random = torch.Generator().manual_seed(0)
        x = torch.randn(256, 576, generator=random).to(self._dtype)
        weight = self.pack(torch.randn(1536, 576, generator=random).to(self._dtype))
        whole = self.linear(x, weight)
        return all(torch.equal(self.linear(x[:rows].clone(), weight), whole[:rows]) for rows in (1, 2, 7, 16, 33, 64))

    def new_kv(self, layers: int, blocks: int) -> KVTensors:
        """See `Kernels.new_kv`. Each layer: (blocks, kv_heads, block_size, head_size)."""
        return KVTensors.zeros(layers, (blocks, *self._block_shape), self._dtype)

    def pack(self, weight: torch.Tensor) -> Packed:
        """See `Kernels.pack`. Packing halves the cost of small batches: plain linear re-packs at every call."""
        if self._packs:
            return torch.ops.mkldnn._reorder_linear_weight(weight, _PACK_ROWS)
        return weight

    def linear(self, x: torch.Tensor, weight: Packed) -> torch.Tensor:
        """See `Kernels.linear`."""
        if self._packs:
            return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")  # type: ignore[no-any-return]
        return F.linear(x, weight)

    def logits(self, x: torch.Tensor, weight: Packed) -> torch.Tensor:
        """See `Kernels.logits`."""
        return self.linear(x, weight).float()

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """See `Kernels.rms_norm`."""
        return F.rms_norm(x, weight.shape, weight, eps)

    def add_rms_norm(self, residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """See `Kernels.add_rms_norm`."""
        residual += x
        return F.rms_norm(residual, weight.shape, weight, eps)

    def rope_and_store(
        self,
        qkv: torch.Tensor,
        rotary: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        batch: AttentionBatch,
    ) -> torch.Tensor:
        """See `Kernels.rope_and_store`."""
        _, kv_heads, block_size, head_size = keys.shape
        rows = qkv.shape[0]
        heads = qkv.shape[1] // head_size - 2 * kv_heads
        parts = qkv.view(rows, heads + 2 * kv_heads, head_size)
        cosine, sine = rotary[batch.positions].unsqueeze(1).chunk(2, dim=-1)
        first, second = parts[:, : heads + kv_heads].float().chunk(2, dim=-1)
        rotated = torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1).to(qkv.dtype)
        block, inside = batch.slots // block_size, batch.slots % block_size
        keys[block, :, inside] = rotated[:, heads:]
        values[block, :, inside] = parts[:, heads + kv_heads :]
        return rotated[:, :heads].contiguous()

    def attention(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, batch: AttentionBatch
    ) -> torch.Tensor:
        """See `Kernels.attention`. Gathers the blocks, then torch's own attention over them."""
        if self._layout is None or self._layout[0] is not batch:
            self._layout = (batch, _Layout.of(batch, keys.shape[2]))
        layout = self._layout[1]
        rows, heads, head_size = queries.shape
        kv_heads = keys.shape[1]
        out = torch.empty_like(queries)
        if len(layout.decode_rows):
            grouped = queries[layout.decode_rows].view(-1, kv_heads, heads // kv_heads, head_size)
            k, v = _gather(keys, layout.decode_tables), _gather(values, layout.decode_tables)
            attended = F.scaled_dot_product_attention(grouped, k, v, attn_mask=layout.decode_mask)
            out[layout.decode_rows] = attended.reshape(-1, heads, head_size)
        for start, end, length, table in layout.prefills:
            q = queries[start:end].transpose(0, 1).unsqueeze(0)
            k = _gather(keys, table.unsqueeze(0))[:, :, :length]
            v = _gather(values, table.unsqueeze(0))[:, :, :length]
            mask = None if end - start == length else _causal_mask(end - start, length)
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
            out[start:end] = attended[0].transpose(0, 1)
        return out.view(rows, heads * head_size)

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """See `Kernels.silu_mul`."""
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    def fuse(self, layers: Sequence[LayerWeights], kv: KVTensors, rotary: torch.Tensor, eps: float) -> None:
        """See `Kernels.fuse`."""


def _gather(cache: torch.Tensor, tables: torch.Tensor) -> torch.Tensor:
    """(n, width) tables -> (n, kv_heads, width * block_size, head_size)."""
    _, kv_heads, block_size, head_size = cache.shape
    n, width = tables.shape
    blocks = cache.index_select(0, tables.reshape(-1)).view(n, width, kv_heads, block_size, head_size)
    return blocks.transpose(1, 2).reshape(n, kv_heads, width * block_size, head_size)


@lru_cache(maxsize=4)
def _causal_mask(queries: int, length: int) -> torch.Tensor:
    """(queries, length) bool: the last query sees all keys, the one before it one less."""
    return torch.ones(queries, length, dtype=torch.bool).tril(diagonal=length - queries)


@dataclass(frozen=True)
class _Layout:
    """A batch, sorted into sequences of one row, done together, and longer ones, done one by one."""

    decode_rows: torch.Tensor
    decode_tables: torch.Tensor
    decode_mask: torch.Tensor
    prefills: list[tuple[int, int, int, torch.Tensor]]

    @classmethod
    def of(cls, batch: AttentionBatch, block_size: int) -> "_Layout":
        starts, lengths = batch.query_starts.tolist(), batch.lengths.tolist()
        decodes = [n for n in range(len(lengths)) if starts[n + 1] - starts[n] == 1]
        longest = max((lengths[n] for n in decodes), default=0)
        tables = batch.block_tables[decodes, : -(-longest // block_size)]
        seen = torch.arange(tables.shape[1] * block_size)
        return cls(
            decode_rows=torch.tensor([starts[n] for n in decodes], dtype=torch.int64),
            decode_tables=tables,
            decode_mask=(seen < batch.lengths[decodes].unsqueeze(1))[:, None, None, :],
            prefills=[
                (starts[n], starts[n + 1], lengths[n], batch.block_tables[n, : -(-lengths[n] // block_size)])
                for n in range(len(lengths))
                if starts[n + 1] - starts[n] > 1
            ],
        )
