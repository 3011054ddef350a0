"""The kernels for GPUs: Triton, and cuBLAS for the matrix products.

On Triton's interpreter (TRITON_INTERPRET=1) the same code runs on the CPU, slowly: that is how it is tested without a
GPU.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
import triton
from numpy.typing import NDArray

from engine.errors import EngineError
from engine.kernels.base import (
    FP8,
    AttentionBatch,
    DeviceInputs,
    FusedLayers,
    KVTensors,
    LayerShape,
    LayerWeights,
    PackedWeight,
    PendingSample,
    Positions,
    SampledTokens,
    SamplingRequests,
)
from engine.kernels.triton import layers, sampling
from engine.kernels.triton.buffers import Mirror
from engine.kernels.triton.graphs import Graphs, bucket_size
from engine.kernels.triton.paged import PagedAttention, padded, programs_on


def is_interpreted() -> bool:
    """Return whether Triton kernels run on its interpreter."""
    return bool(triton.knobs.runtime.interpret)


class TritonKernels:
    """Implementation of `Kernels` for GPUs, for steps of up to `rows` rows of `sequences` sequences with up to `width`
    blocks each."""

    def __init__(
        self,
        shape: LayerShape,
        dtype: torch.dtype,
        block_size: int,
        device: torch.device,
        *,
        rows: int,
        sequences: int,
        width: int,
        kv_dtype: torch.dtype | None = None,
    ) -> None:
        """Allocate the buffers. Raises EngineError if the device is not available, or too old."""
        self._shape, self._dtype, self._block = shape, dtype, block_size
        self.device, self.kv_dtype, self.qkv_dtype = device, kv_dtype or dtype, dtype
        self._interpreted = is_interpreted()
        upcast = self._interpreted and dtype == torch.bfloat16
        if device.type == "cuda":
            properties = torch.cuda.get_device_properties(device)
            if properties.major < 8:
                raise EngineError(
                    f"{properties.name} is of compute capability {properties.major}.{properties.minor}; the kernels "
                    "need 8.0 (Ampere) or later"
                )
            if self.kv_dtype == FP8 and (properties.major, properties.minor) < (8, 9):
                raise EngineError(f"{properties.name} does not support 8-bit floating point; leave out --kv-dtype")
            self.name = f"Triton on {properties.name}"
        elif self._interpreted:
            self.name = "Triton, interpreted"
        else:
            raise EngineError(f"the Triton kernels run on GPUs, not on {device}")
        self.is_batch_invariant = False  # cuBLAS selects algorithms by the shape of the batch
        self._sequences = sequences
        self._attention = PagedAttention(
            shape,
            block_size,
            rows=max(rows, sequences),
            sequences=sequences,
            width=width,
            programs=programs_on(device),
            device=device,
            element_bytes=dtype.itemsize,
            narrow=self.kv_dtype == FP8,
            upcast=upcast,
        )
        integers = torch.int32
        self._tokens = Mirror(max(rows, sequences), torch.int64, device)
        self._positions, self._slots = (Mirror(max(rows, sequences), integers, device) for _ in range(2))
        self._logit_rows = Mirror(sequences, torch.int64, device)
        self._graphs = Graphs() if device.type == "cuda" else None
        self.recorded_sizes: Sequence[int] = sorted(
            {min(bucket_size(rows + 1), sequences) for rows in range(sequences)}, reverse=True
        )
        if self._graphs is None:
            self.recorded_sizes = []
        self._bucket: int | None = None
        """Number of rows of the batch staged last if its step can be a CUDA graph, else None."""
        self._sampling = _SamplingBuffers(device, sequences)

    # a step

    def stage(self, tokens: torch.Tensor, batch: AttentionBatch, logit_rows: torch.Tensor) -> DeviceInputs:
        """See `Kernels.stage`. If every row decodes and gets logits, the batch is padded to the size of a CUDA
        graph."""
        rows = len(tokens)
        sequences = len(batch.lengths)
        whole = rows == sequences == len(logit_rows)
        self._bucket = min(bucket_size(rows), self._sequences) if whole else None
        padding = self._bucket - rows if self._bucket else 0
        self._attention.prepare(
            batch.query_starts.numpy(), batch.lengths.numpy(), batch.block_tables.numpy(), places=self._bucket
        )
        nothing = [0] * padding
        staged = AttentionBatch(
            positions=self._positions.send(batch.positions.numpy(), nothing),
            slots=self._slots.send(batch.slots.numpy(), nothing),  # in the scratch block
            query_starts=batch.query_starts,
            lengths=batch.lengths,
            block_tables=batch.block_tables,
        )
        ids = self._tokens.send(tokens.numpy(), nothing)
        if bool((tokens < 0).any()):
            sampling.fill_placeholders[(triton.cdiv(rows, sampling.CHANGES),)](
                ids, self._sampling.tokens, rows, BLOCK=sampling.CHANGES, num_warps=1
            )
        return DeviceInputs(
            ids,
            staged,
            self._logit_rows.send(logit_rows.numpy(), list(range(rows, rows + padding))),
        )

    def run(self, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """See `Kernels.run`."""
        if self._graphs is None or self._bucket is None:
            return compute()
        return self._graphs.run(self._bucket, compute)

    def replay(self) -> None:
        """Replay the step staged last if it is recorded, to measure it."""
        if self._graphs is not None and self._bucket is not None:
            self._graphs.replay(self._bucket)

    # a layer

    def new_kv(self, layers: int, blocks: int) -> KVTensors:
        """See `Kernels.new_kv`. Each layer: (blocks, kv_heads, block_size, head_size)."""
        shape = (blocks, self._shape.kv_heads, self._block, self._shape.head_size)
        return KVTensors.zeros(layers, shape, self.kv_dtype, self.device)

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> PackedWeight:
        """See `Kernels.pack`."""
        return weight.to(self.device), None if bias is None else bias.to(self.device)

    def linear(self, x: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
        """See `Kernels.linear`."""
        return F.linear(x, *weight)

    def linear_float32(self, x: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
        """See `Kernels.linear_float32`."""
        return self.linear(x, weight).float()

    def add_rms_norm(
        self, residual: torch.Tensor, x: torch.Tensor | None, weight: torch.Tensor, inner: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See `Kernels.add_rms_norm`."""
        rows, hidden = residual.shape
        out = torch.empty_like(residual, dtype=self._dtype)
        if rows:
            layers.add_rms_norm[(rows,)](
                residual,
                residual if x is None else x,
                weight,
                weight if inner is None else inner,
                out,
                hidden,
                self._shape.eps,
                ADDS=x is not None,
                INNER=inner is not None,
                PADDED=padded(hidden),
                num_warps=layers.warps(hidden),
            )
        return out

    def rope_and_store(
        self, qkv: torch.Tensor, positions: Positions, keys: torch.Tensor, values: torch.Tensor, batch: AttentionBatch
    ) -> torch.Tensor:
        """See `Kernels.rope_and_store`."""
        shape, rows = self._shape, len(qkv)
        queries = torch.empty(rows, shape.heads, shape.head_size, dtype=qkv.dtype, device=qkv.device)
        rotary, query_norm, key_norm = positions.rotary, positions.query_norm, positions.key_norm
        heads = padded(shape.heads + 2 * shape.kv_heads)
        layers.rope_and_store[(rows,)](
            qkv,
            batch.positions,
            batch.slots,
            queries if rotary is None else rotary,
            queries if query_norm is None else query_norm,
            queries if key_norm is None else key_norm,
            queries,
            keys,
            values,
            shape.eps,
            HEADS=shape.heads,
            KV_HEADS=shape.kv_heads,
            SIZE=shape.head_size,
            PADDED_HEADS=heads,
            PADDED=padded(shape.head_size),
            BLOCK=self._block,
            ROTATED=0 if rotary is None else rotary.shape[1],
            QUERY_NORM=query_norm is not None,
            KEY_NORM=key_norm is not None,
            FP8=self.kv_dtype == FP8,
            num_warps=layers.warps(heads * padded(shape.head_size)),
        )
        return queries

    def attention(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        batch: AttentionBatch,
        window: int = 0,
    ) -> torch.Tensor:
        """See `Kernels.attention`. It uses the batch staged last."""
        return self._attention(queries, keys, values, batch.positions, window).view(len(queries), -1)

    def gated(self, gate_up: torch.Tensor) -> torch.Tensor:
        """See `Kernels.gated`."""
        rows, size = gate_up.shape[0], gate_up.shape[1] // 2
        out = torch.empty(rows, size, dtype=gate_up.dtype, device=gate_up.device)
        layers.gated[(rows, triton.cdiv(size, layers.GATED_BLOCK))](
            gate_up, out, size, GELU=self._shape.activation == "gelu", BLOCK=layers.GATED_BLOCK, num_warps=4
        )
        return out

    def fuse(self, layers: Sequence[LayerWeights], kv: KVTensors) -> FusedLayers | None:
        """See `Kernels.fuse`. The layers are not fused; CUDA graphs record their launches instead."""
        return None

    def sample(self, logits: torch.Tensor, requests: SamplingRequests) -> PendingSample:
        """See `Kernels.sample`."""
        return self._sampling(logits, requests)


class _SamplingBuffers:
    """Buffers for sampling up to `rows` rows. `tokens`: those sampled last, on the device."""

    def __init__(self, device: torch.device, rows: int) -> None:
        self._device = device
        self._requests = Mirror(rows * sampling.REQUEST_FIELDS, torch.float64, device)
        self._stats = torch.zeros(rows, sampling.STATS, dtype=torch.float32, device=device)
        self.tokens = torch.zeros(rows, dtype=torch.int32, device=device)
        self._logprobs = torch.zeros(rows, dtype=torch.float32, device=device)

    def __call__(self, logits: torch.Tensor, requests: SamplingRequests) -> "_PendingSample":
        rows, vocabulary = logits.shape
        width = max(0, int(requests.rows["top_logprobs"].max()))
        fields = ("temperature", "top_p", "min_p", "top_k", "top_logprobs", "uniform")
        request_rows = self._requests.send(np.stack([requests.rows[field] for field in fields], axis=1).reshape(-1))
        masks = len(requests.allowed) > 0
        sent = (requests.allowed, requests.mask_index)
        allowed, masked = (self._send(array) if masks else self.tokens for array in sent)
        grid, block = (rows,), {"BLOCK": sampling.BLOCK, "num_warps": sampling.WARPS}
        sampling.apply_masks[grid](
            logits, allowed, masked, self._stats, vocabulary, requests.allowed.shape[1], MASKS=masks, **block
        )
        alternatives: list[torch.Tensor] = []
        if width:
            top_ids = torch.zeros(rows, width, dtype=torch.int32, device=self._device)
            top_values = torch.full((rows, width), -torch.inf, dtype=torch.float32, device=self._device)
            sampling.top_tokens[grid](logits, request_rows, top_ids, top_values, vocabulary, width, **block)
            alternatives = [top_ids, top_values, self._stats[:rows]]
        changes = len(requests.ids) > 0
        starts = ids = before = self._stats
        if changes:
            starts, ids, factors, biases = (
                self._send(array) for array in (requests.starts, requests.ids, requests.factors, requests.biases)
            )
            before = torch.empty_like(factors)
            sampling.adjust[grid](logits, starts, ids, factors, biases, before, vocabulary, BLOCK=sampling.CHANGES)
        sampling.pick[grid](logits, request_rows, self._stats, self.tokens, vocabulary, **block)
        if (requests.rows["top_logprobs"] >= 0).any():
            sampling.log_probabilities[grid](
                logits,
                self._stats,
                self.tokens,
                starts,
                ids,
                before,
                self._logprobs,
                vocabulary,
                CHANGED=changes,
                BLOCK=sampling.CHANGES,
            )
        return _PendingSample(requests, [self.tokens[:rows], self._logprobs[:rows], *alternatives])

    def _send(self, array: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device, non_blocking=True)


class _PendingSample:
    """Tokens on their way to host memory; see `PendingSample`. Each has memory of its own, so the next step may sample
    before the host reads these."""

    def __init__(self, requests: SamplingRequests, tensors: list[torch.Tensor]) -> None:
        """Start the copies. `tensors`: tokens and log probabilities; if alternatives are requested, also their ids and
        logits, and the rows' statistics."""
        self._requests = requests
        self._event: torch.cuda.Event | None = None
        pinned = tensors[0].device.type == "cuda"
        self._host_tensors = [
            torch.empty(answer.shape, dtype=answer.dtype, pin_memory=pinned).copy_(answer, non_blocking=True)
            for answer in tensors
        ]
        if pinned:
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def result(self) -> SampledTokens:
        """See `PendingSample.result`."""
        if self._event is not None:
            self._event.synchronize()
        tokens, logprobs, *alternatives = (answer.numpy() for answer in self._host_tensors)
        sampled = SampledTokens.empty(self._requests)
        sampled.tokens[:], sampled.logprobs[:] = tokens, logprobs
        if alternatives:
            ids, values, stats = alternatives
            _sort(sampled, ids, values, stats[:, 0] + stats[:, 1])
        return sampled


def _sort(
    sampled: SampledTokens, ids: NDArray[np.int32], values: NDArray[np.float32], normalisers: NDArray[np.float32]
) -> None:
    """Write the alternatives in order of likelihood; ties go to the smaller id."""
    order = np.lexsort((ids, -values), axis=1)
    sampled.top_ids[:] = np.take_along_axis(ids, order, axis=1)
    sampled.top_logprobs[:] = np.take_along_axis(values, order, axis=1) - normalisers[:, None]
