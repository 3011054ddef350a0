"""Interface of the kernels, and the tensors that they work on.

Row counts vary from step to step. Kernels whose rows do not depend on their neighbours, bit for bit, declare it in
`is_batch_invariant`: then batching never changes the answer to a request.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from engine.kernels.memory import large_zeros

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
"""Largest finite number of `FP8` (float8_e4m3fn). Numbers are clamped to ±FP8_MAX before they are stored."""

PackedWeight = Any
"""A weight in the layout of the kernels that packed it; other kernels cannot read it."""


@dataclass(frozen=True)
class LayerShape:
    """Properties that all layers of a decoder have in common. Sizes are in elements.

    `rotary_size`: number of leading elements of a head that rotary positions rotate.
    `scale` multiplies attention scores; a `softcap` above 0 then bounds them (Gemma 2).
    `activation` applies to the gate: silu, or gelu in its tanh form.
    """

    heads: int
    kv_heads: int
    head_size: int
    rotary_size: int
    hidden: int
    intermediate: int
    activation: Literal["silu", "gelu"]
    scale: float
    softcap: float
    eps: float


@dataclass(frozen=True)
class KVTensors:
    """The KV pool: for each layer one tensor of keys and one of values, (blocks, …).

    The layout inside a block belongs to the kernels that created the pool.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]

    @classmethod
    def zeros(
        cls, layers: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | None = None
    ) -> "KVTensors":
        """Return a pool of zeros. Host memory is allocated as it is written, GPU memory immediately."""
        if device is None or device.type == "cpu":
            keys, values = ([large_zeros(shape, dtype) for _ in range(layers)] for _ in range(2))
        else:
            keys, values = ([torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)] for _ in range(2))
        return cls(keys, values)

    def copy_blocks(self, copies: list[tuple[int, int]]) -> None:
        """Copy whole blocks in every layer. `copies`: pairs of block numbers, (from, to)."""
        source, target = torch.tensor(copies, device=self.keys[0].device).unbind(1)
        for layer in (*self.keys, *self.values):
            layer[target] = layer[source]

    def slots(self, count: int) -> torch.Tensor:
        """Return memory for `count` host slots, each for one block of all layers: (count, 2 * layers, …).

        It is pinned if the pool is on a GPU.
        """
        layers = (*self.keys, *self.values)
        shape = (count, len(layers), *layers[0].shape[1:])
        if layers[0].device.type == "cpu":
            return large_zeros(shape, layers[0].dtype)
        return torch.zeros(shape, dtype=layers[0].dtype, pin_memory=True)

    def swap(self, slots: torch.Tensor, outs: list[tuple[int, int]], ins: list[tuple[int, int]]) -> None:
        """Copy whole blocks to host slots, then others from host slots. Does not wait for a GPU.

        `slots`: the memory that the method `slots` returned. `outs`: pairs of a block and the host slot to copy it to.
        `ins`: pairs of a host slot and the block to copy it to.
        """
        layers = (*self.keys, *self.values)
        device = layers[0].device
        if outs:
            source = torch.tensor([block for block, _ in outs], device=device)
            together = torch.stack([layer[source] for layer in layers], dim=1)
            for index, (_, slot) in enumerate(outs):
                slots[slot].copy_(together[index], non_blocking=True)
        if ins:
            target = torch.tensor([block for _, block in ins], device=device)
            together = torch.empty((len(ins), *slots.shape[1:]), dtype=slots.dtype, device=device)
            for index, (slot, _) in enumerate(ins):
                together[index].copy_(slots[slot], non_blocking=True)
            for index, layer in enumerate(layers):
                layer[target] = together[:, index]


@dataclass(frozen=True)
class Positions:
    """Transformation of a layer's query and key heads before attention.

    `query_norm`, `key_norm`: (head_size,) float32, weights of an RMS norm of each head, applied first; or None.
    `rotary`: (window, rotated) float32, cosines then sines by position, for the first `rotated` elements of a head,
        rotating halves (Su et al. 2021); None for a layer without positions.
    """

    rotary: torch.Tensor | None
    query_norm: torch.Tensor | None = None
    key_norm: torch.Tensor | None = None


@dataclass(frozen=True)
class LayerWeights:
    """Weights of one layer: norms (hidden,) float32, and packed linear weights. Queries, keys and values are one
    weight; gate and up are one weight.

    `attention_out_norm`, `mlp_out_norm`: norms of what is added to the residual, in families that have them.
    `window`: maximum number of keys that a row sees, including its own; 0 for all.
    """

    attention_norm: torch.Tensor
    qkv: PackedWeight
    positions: Positions
    output: PackedWeight
    mlp_norm: torch.Tensor
    gate_up: PackedWeight
    down: PackedWeight
    attention_out_norm: torch.Tensor | None = None
    mlp_out_norm: torch.Tensor | None = None
    window: int = 0


@dataclass(frozen=True)
class AttentionBatch:
    """Rows of a step by sequence, and the places of their keys. There are n sequences and `rows` rows in all.

    `positions`: (rows,) int64, from 0.
    `slots`: (rows,) int64, KV slot of each row, in tokens from the start of the pool.
    `query_starts`: (n + 1,) int32, first row of each sequence.
    `lengths`: (n,) int32, number of keys that the sequence's last row sees, including its own.
    `block_tables`: (n, width) int32, padded with the scratch block.
    """

    positions: torch.Tensor
    slots: torch.Tensor
    query_starts: torch.Tensor
    lengths: torch.Tensor
    block_tables: torch.Tensor


REQUEST = np.dtype(
    [
        ("temperature", "f4"),
        ("top_p", "f4"),
        ("min_p", "f4"),
        ("top_k", "i4"),
        ("top_logprobs", "i4"),
        ("uniform", "f8"),
    ],
    align=True,
)
"""Sampling parameters of one row. Temperature 0 is greedy. Else `uniform`, in [0, 1), draws from the row's candidates
after min_p, top_k and top_p (off at 0, 0 and 1). `top_logprobs`: number of alternatives to report, -1 for no log
probabilities at all."""


@dataclass(frozen=True)
class SamplingRequests:
    """Sampling parameters, masks and logit changes of a step's rows.

    `rows`: (m,) of REQUEST.
    `allowed`: (masks, words) int32; bit t % 32 of word t // 32 is set if token t is allowed. The logits of other tokens
        are minus infinity, also for log probabilities.
    `mask_index`: (m,), the mask of each row, -1 for none.
    `starts`, `ids`, `factors`, `biases`: the logits of row r at ids[starts[r] : starts[r + 1]], which are distinct
        tokens, change before sampling. A positive logit is divided by its factor, another one multiplied; then the bias
        is added. Log probabilities use the logits before that.
    """

    rows: NDArray[np.void]
    starts: NDArray[np.int32]
    ids: NDArray[np.int32]
    factors: NDArray[np.float32]
    biases: NDArray[np.float32]
    allowed: NDArray[np.int32]
    mask_index: NDArray[np.int32]


@dataclass(frozen=True)
class SampledTokens:
    """Tokens sampled for m rows.

    `tokens`: (m,) int32, -1 for a row with NaN or without an allowed token.
    `logprobs`: (m,). `top_ids`, `top_logprobs`: (m, most alternatives of a row), filled as far as each row requests.
    """

    tokens: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    top_ids: NDArray[np.int32]
    top_logprobs: NDArray[np.float32]

    def result(self) -> "SampledTokens":
        """Return these tokens; see `PendingSample`."""
        return self

    @classmethod
    def empty(cls, requests: SamplingRequests) -> "SampledTokens":
        """Return arrays for the results of the requests, without tokens yet."""
        rows, width = len(requests.rows), max(0, int(requests.rows["top_logprobs"].max()))
        return cls(
            np.full(rows, -1, dtype=np.int32),
            np.zeros(rows, dtype=np.float32),
            np.zeros((rows, width), dtype=np.int32),
            np.zeros((rows, width), dtype=np.float32),
        )


class PendingSample(Protocol):
    """Tokens that a device may still be sampling."""

    def result(self) -> SampledTokens:
        """Wait for the tokens."""


class DeviceInputs(NamedTuple):
    """Arrays of a step on the device. There may be additional rows, which write to the scratch block and whose results
    are not used."""

    tokens: torch.Tensor
    batch: AttentionBatch
    logit_rows: torch.Tensor


class FusedLayers(Protocol):
    """Function that runs all layers of a decoder."""

    def __call__(
        self, residual: torch.Tensor, batch: AttentionBatch, logit_rows: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the KV of all rows and compute the rows that get logits.

        `residual`: (rows, hidden) float32, changed in place. `logit_rows`: (m,) int64, ascending.

        Returns for the rows of `logit_rows` the residual before the last layer's addition, and what that layer adds,
        before its `mlp_out_norm`: both (m, hidden) float32, valid until the next step. The last layer computes no other
        rows.
        """


class Kernels(Protocol):
    """One implementation of the operations of a forward pass, for one layer shape. Tensors are on its device, in the
    model's dtype unless stated otherwise."""

    name: str
    device: torch.device
    kv_dtype: torch.dtype
    qkv_dtype: torch.dtype
    """Dtype of the queries, keys and values that `rope_and_store` accepts: float32 where a product in float32 costs
    nothing more."""
    is_batch_invariant: bool
    """Whether a row's results are the same bit for bit whatever other rows are in the step; otherwise equal up to
    rounding."""

    recorded_sizes: Sequence[int]
    """Sizes of decode batches whose first run is slow, to be run once when the engine starts."""

    def stage(self, tokens: torch.Tensor, batch: AttentionBatch, logit_rows: torch.Tensor) -> "DeviceInputs":
        """Copy a step's arrays from the host to where these kernels read them.

        `tokens`: (rows,) int64; -1 - r stands for the token sampled last for row r, which the host need not know.
        `logit_rows`: (m,) int64, rows that get logits, ascending.

        The result is valid until the next step is staged.
        """

    def run(self, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return the result of `compute`, which calls the operations on the batch staged last and has no other effect.

        The kernels may replay the calls of an earlier step instead.
        """

    def new_kv(self, layers: int, blocks: int) -> KVTensors:
        """Return a pool of zeros. Pages of memory are allocated as they are written."""

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> PackedWeight:
        """Pack an (out, in) weight and its (out,) bias for `linear` and `linear_float32`. The originals may be freed
        afterwards."""

    def linear(self, x: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
        """Return the product, (rows, in) -> (rows, out)."""

    def linear_float32(self, x: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
        """Return the product in float32, (rows, in) -> (rows, out): for logits, and for what is added to the residual
        stream or rotated."""

    def add_rms_norm(
        self, residual: torch.Tensor, x: torch.Tensor | None, weight: torch.Tensor, inner: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Add `x` to `residual` in place and return the RMS norm of the sum (Zhang and Sennrich 2019).

        `residual`, `x`: (rows, hidden) float32; without `x`, return the norm of the residual.
        `inner`: weight of a norm applied to `x` first.
        """

    def rope_and_store(
        self, qkv: torch.Tensor, positions: Positions, keys: torch.Tensor, values: torch.Tensor, batch: AttentionBatch
    ) -> torch.Tensor:
        """Normalise and rotate queries and keys, write keys and values to their KV slots, and return the
        queries.

        `qkv`: (rows, (heads + 2 * kv_heads) * head_size), in `qkv_dtype`. Returns (rows, heads, head_size).
        """

    def attention(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        batch: AttentionBatch,
        window: int = 0,
    ) -> torch.Tensor:
        """Return causal attention of every row over its sequence's blocks; see `LayerWeights` for the window.

        `queries`: (rows, heads, head_size). Keys and values are not changed. Returns (rows, heads * head_size).
        """

    def gated(self, gate_up: torch.Tensor) -> torch.Tensor:
        """Return the activation of the first half times the second, (rows, 2 * intermediate) -> (rows,
        intermediate)."""

    def sample(self, logits: torch.Tensor, requests: SamplingRequests) -> "PendingSample":
        """Sample one token for each row of logits, (m, vocabulary) float32, which are changed."""

    def fuse(self, layers: Sequence[LayerWeights], kv: KVTensors) -> FusedLayers | None:
        """Return a function that runs all layers with the same results as these methods, or None if these kernels have
        none."""
