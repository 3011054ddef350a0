"""The operation set, and the tensors it works on.

Row counts vary from step to step. Kernels whose rows do not depend on their neighbours, bit for bit, say so: then
batching never changes what a request is answered.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from engine.kernels.memory import large_zeros

FP8 = torch.float8_e4m3fn
FP8_MOST = 448.0
"""The largest number of that type; what is larger is stored as this."""

Packed = Any
"""A weight in whatever layout the kernels like best; made by `pack`, understood only by the same kernels."""


@dataclass(frozen=True)
class LayerShape:
    """What all layers of a decoder have in common, in elements.

    `rotated`: leading elements of a head that are turned by position. `scale` multiplies attention scores; a
    `softcap` above 0 then bounds them (Gemma 2). `activation` is applied to the gate: silu, or gelu in its tanh form.
    """

    heads: int
    kv_heads: int
    head_size: int
    rotated: int
    hidden: int
    intermediate: int
    activation: Literal["silu", "gelu"]
    scale: float
    softcap: float
    eps: float


@dataclass(frozen=True)
class KVTensors:
    """The KV pool: a tensor a layer for keys and one for values, (blocks, …).

    How a block looks inside is the business of the kernels that made it.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]

    @classmethod
    def zeros(
        cls, layers: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | None = None
    ) -> "KVTensors":
        """A pool of zeros. The host's memory comes as it is written; a GPU's at once."""
        if device is None or device.type == "cpu":
            keys, values = ([large_zeros(shape, dtype) for _ in range(layers)] for _ in range(2))
        else:
            keys, values = ([torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)] for _ in range(2))
        return cls(keys, values)

    def copy_blocks(self, copies: list[tuple[int, int]]) -> None:
        """Copies whole blocks, (from, to), in every layer."""
        source, target = torch.tensor(copies, device=self.keys[0].device).unbind(1)
        for layer in (*self.keys, *self.values):
            layer[target] = layer[source]

    def slots(self, count: int) -> torch.Tensor:
        """Memory of the host for so many blocks of all layers, (count, 2 * layers, …), pinned where the pool is a
        GPU's."""
        layers = (*self.keys, *self.values)
        shape = (count, len(layers), *layers[0].shape[1:])
        if layers[0].device.type == "cpu":
            return large_zeros(shape, layers[0].dtype)
        return torch.zeros(shape, dtype=layers[0].dtype, pin_memory=True)

    def swap(self, slots: torch.Tensor, outs: list[tuple[int, int]], ins: list[tuple[int, int]]) -> None:
        """Copies whole blocks to slots, and then others from slots; (from, to). Does not wait for a GPU."""
        layers = (*self.keys, *self.values)
        device = layers[0].device
        if outs:
            source = torch.tensor([block for block, _ in outs], device=device)
            together = torch.stack([layer[source] for layer in layers], dim=1)
            for at, (_, slot) in enumerate(outs):
                slots[slot].copy_(together[at], non_blocking=True)
        if ins:
            target = torch.tensor([block for _, block in ins], device=device)
            together = torch.empty((len(ins), *slots.shape[1:]), dtype=slots.dtype, device=device)
            for at, (slot, _) in enumerate(ins):
                together[at].copy_(slots[slot], non_blocking=True)
            for at, layer in enumerate(layers):
                layer[target] = together[:, at]


@dataclass(frozen=True)
class Positions:
    """What is done to a layer's query and key heads before they meet.

    query_norm, key_norm: (head_size,) float32, RMS norms of each head first, or None. rotary: (window, rotated)
    float32, cosines then sines by position, for the first `rotated` elements of a head, rotating halves (Su et al.
    2021); None for a layer without positions.
    """

    rotary: torch.Tensor | None
    query_norm: torch.Tensor | None = None
    key_norm: torch.Tensor | None = None


@dataclass(frozen=True)
class LayerWeights:
    """One layer of a decoder: norms (hidden,) float32, linear weights packed. Queries, keys and values are one
    weight, and so are gate and up.

    `attended_norm` and `mlp_out_norm` are norms of what is added to the residual, where the family has them.
    `window`: keys that a row sees at most, its own included; 0 for all.
    """

    attention_norm: torch.Tensor
    qkv: Packed
    positions: Positions
    output: Packed
    mlp_norm: torch.Tensor
    gate_up: Packed
    down: Packed
    attended_norm: torch.Tensor | None = None
    mlp_out_norm: torch.Tensor | None = None
    window: int = 0


@dataclass(frozen=True)
class AttentionBatch:
    """Which rows belong to whom and where their keys lie. n sequences, `rows` rows in all.

    positions: (rows,) int64, from 0. slots: (rows,) int64, where each row's KV goes, in tokens from the start
    of the pool. query_starts: (n + 1,) int32, first row of each sequence. lengths: (n,) int32, keys that the
    sequence's last row sees, its own included. block_tables: (n, width) int32, padded with the scratch block.
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
"""How one row chooses its token. Temperature 0 takes the likeliest; else the row's candidates, after min_p, top_k and
top_p (off at 0, 0 and 1), are drawn from by `uniform` in [0, 1). `top_logprobs`: alternatives to report, -1 for no log
probabilities at all."""


@dataclass(frozen=True)
class ChoiceRequests:
    """rows: (m,) of REQUEST.

    allowed: (masks, words) int32: bit t % 32 of word t // 32 says whether token t may come. masked: (m,), which mask a
    row has, -1 for none. What is not allowed has a logit of minus infinity, for log probabilities too.

    Row r's logits of ids[starts[r] : starts[r + 1]], which are different tokens, are changed before the choice: by the
    factors of the same places (positive ones divided by it, others multiplied), and then the biases are added. Log
    probabilities are those of the logits as they were.
    """

    rows: NDArray[np.void]
    starts: NDArray[np.int32]
    ids: NDArray[np.int32]
    factors: NDArray[np.float32]
    biases: NDArray[np.float32]
    allowed: NDArray[np.int32]
    masked: NDArray[np.int32]


@dataclass(frozen=True)
class Choices:
    """tokens: (m,) int32, -1 for a row with NaN or with no token left. logprobs: (m,); top_ids, top_logprobs: (m,
    most asked for), filled as far as each row asked."""

    tokens: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    top_ids: NDArray[np.int32]
    top_logprobs: NDArray[np.float32]

    def result(self) -> "Choices":
        """See `PendingChoices`: they are made."""
        return self

    @classmethod
    def empty(cls, requests: ChoiceRequests) -> "Choices":
        """Room for the answers; no row has a token yet."""
        rows, width = len(requests.rows), max(0, int(requests.rows["top_logprobs"].max()))
        return cls(
            np.full(rows, -1, dtype=np.int32),
            np.zeros(rows, dtype=np.float32),
            np.zeros((rows, width), dtype=np.int32),
            np.zeros((rows, width), dtype=np.float32),
        )


class PendingChoices(Protocol):
    """Choices that a device may still be making."""

    def result(self) -> Choices:
        """Waits for them."""


class Staged(NamedTuple):
    """A step's arrays on the device. There may be more rows than there were: rows that nobody wants and that write to
    the scratch block."""

    tokens: torch.Tensor
    batch: AttentionBatch
    wanted: torch.Tensor


class FusedLayers(Protocol):
    """All layers of a decoder in one call."""

    def __call__(
        self, residual: torch.Tensor, batch: AttentionBatch, wanted: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes the KV of all rows. residual: (rows, hidden), changed. wanted: (m,) int64, ascending.

        Returns for the wanted rows the residual before the last layer adds to it, and what that adds, before its
        `mlp_out_norm`, both (m, hidden) and good until the next call: nobody needs more of the last layer.
        """


class Kernels(Protocol):
    """One implementation, for one shape of layer. Tensors are on its device, in the model's dtype unless said
    otherwise."""

    name: str
    device: torch.device
    kv_dtype: torch.dtype
    batch_invariant: bool
    """Whether a row's results are the same bit for bit whatever rows stand beside it; else to rounding."""

    recorded: Sequence[int]
    """Sizes of decode batches whose first time takes long, and which are worth a trial when the engine starts."""

    def stage(self, tokens: torch.Tensor, batch: AttentionBatch, wanted: torch.Tensor) -> "Staged":
        """Brings a step's arrays, which the host wrote, to where these kernels read them.

        tokens: (rows,) int64; -1 - r stands for the token of row r of the last choice, which the host need not know.
        wanted: (m,) int64, rows that get logits, ascending. What is staged is good until the next call.
        """

    def run(self, step: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What the step returns, which makes the calls for what was staged last and has no other effect: it may be
        made up from an earlier step's calls."""

    def new_kv(self, layers: int, blocks: int) -> KVTensors:
        """A pool of zeros; the pages of memory come only as they are written."""

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Packed:
        """A (out, in) weight and its (out,) bias, for `linear` and `logits`. The originals may be freed then."""

    def linear(self, x: torch.Tensor, weight: Packed) -> torch.Tensor:
        """(rows, in) -> (rows, out)."""

    def logits(self, x: torch.Tensor, weight: Packed) -> torch.Tensor:
        """(rows, in) -> (rows, out) in float32."""

    def add_rms_norm(
        self, residual: torch.Tensor, x: torch.Tensor | None, weight: torch.Tensor, inner: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Adds `x` to `residual` in place and returns the norm of the sum (Zhang and Sennrich 2019).

        residual, x: (rows, hidden); without `x` the residual's own norm. `inner`: a norm that `x` goes through
        first; `x` is nobody else's then.
        """

    def rope_and_store(
        self, qkv: torch.Tensor, positions: Positions, keys: torch.Tensor, values: torch.Tensor, batch: AttentionBatch
    ) -> torch.Tensor:
        """Norms and rotates queries and keys, writes keys and values to their slots, returns the queries.

        qkv: (rows, (heads + 2 * kv_heads) * head_size). Returns (rows, heads, head_size).
        """

    def attention(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        batch: AttentionBatch,
        window: int = 0,
    ) -> torch.Tensor:
        """Causal attention of every row over its sequence's blocks; see `LayerWeights` for the window.

        queries: (rows, heads, head_size). Reads keys and values only. Returns (rows, heads * head_size).
        """

    def gated(self, gate_up: torch.Tensor) -> torch.Tensor:
        """(rows, 2 * intermediate) -> (rows, intermediate): the activation of the first half times the second."""

    def choose(self, logits: torch.Tensor, requests: ChoiceRequests) -> "PendingChoices":
        """One token for each row of logits, (m, vocabulary) float32, which are changed."""

    def fuse(self, layers: Sequence[LayerWeights], kv: KVTensors) -> FusedLayers | None:
        """All layers in one call with the same results, where these kernels can; else None."""
