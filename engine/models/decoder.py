"""The decoder-only transformer of every family, as a sequence of kernel calls."""

from collections.abc import Callable

import torch

from engine.errors import CheckpointError
from engine.kernels import AttentionBatch, Kernels, LayerWeights, Positions
from engine.kernels.base import Packed
from engine.kv.host_offload import Swaps
from engine.models.rope import Rope, rotary_table
from engine.models.spec import DecoderSpec, LayerSpec


class Decoder:
    """A loaded model and its KV pool. Weights are packed once, when it is made; `forward` keeps no state but the KV.

    In every layer the keys and values of all rows are written before any row attends.
    """

    def __init__(
        self, spec: DecoderSpec, weight: Callable[[str], torch.Tensor], kernels: Kernels, dtype: torch.dtype
    ) -> None:
        """`weight` gives tensors by their checkpoint names. Raises CheckpointError for a missing or misshapen one."""
        self.spec = spec
        self.dtype = dtype
        self.kernels = kernels
        self._tables: dict[int, torch.Tensor] = {}
        reader = _Reader(spec, weight, kernels, dtype)
        self._embedding = reader.matrix("model.embed_tokens", rows=spec.vocabulary, columns=spec.shape.hidden)
        self._head = (
            kernels.pack(self._embedding) if spec.tied else reader.linear(spec.vocabulary, spec.shape.hidden, "lm_head")
        )
        self._norm = reader.norm("model.norm", spec.shape.hidden)
        self._layers = [self._layer(reader, index, layer) for index, layer in enumerate(spec.layers)]
        self.parameters = reader.parameters

    def _layer(self, reader: "_Reader", index: int, layer: LayerSpec) -> LayerWeights:
        spec, shape, name = self.spec, self.spec.shape, f"model.layers.{index}."
        attention, mlp = name + "self_attn.", name + "mlp."
        width = (shape.heads + 2 * shape.kv_heads) * shape.head_size
        return LayerWeights(
            attention_norm=reader.norm(name + "input_layernorm", shape.hidden),
            qkv=reader.linear(
                width,
                shape.hidden,
                *([attention + "qkv_proj"] if spec.fused else [f"{attention}{part}_proj" for part in "qkv"]),
                bias=spec.qkv_bias,
            ),
            positions=Positions(
                rotary=None if layer.rope is None else self._table(layer.rope),
                query_norm=reader.norm(attention + "q_norm", shape.head_size) if spec.head_norms else None,
                key_norm=reader.norm(attention + "k_norm", shape.head_size) if spec.head_norms else None,
            ),
            output=reader.linear(
                shape.hidden, shape.heads * shape.head_size, attention + "o_proj", bias=spec.output_bias
            ),
            mlp_norm=reader.norm(
                name + ("pre_feedforward" if spec.sandwich else "post_attention") + "_layernorm", shape.hidden
            ),
            gate_up=reader.linear(
                2 * shape.intermediate,
                shape.hidden,
                *([mlp + "gate_up_proj"] if spec.fused else [mlp + "gate_proj", mlp + "up_proj"]),
                bias=spec.mlp_bias,
            ),
            down=reader.linear(shape.hidden, shape.intermediate, mlp + "down_proj", bias=spec.mlp_bias),
            attended_norm=reader.norm(name + "post_attention_layernorm", shape.hidden) if spec.sandwich else None,
            mlp_out_norm=reader.norm(name + "post_feedforward_layernorm", shape.hidden) if spec.sandwich else None,
            window=layer.window,
        )

    def _table(self, rope: Rope) -> torch.Tensor:
        """One table for all layers that turn alike."""
        if id(rope) not in self._tables:
            self._tables[id(rope)] = rotary_table(rope, self.spec.window).to(self.kernels.device)
        return self._tables[id(rope)]

    @property
    def batch_invariant(self) -> bool:
        """See `Kernels.batch_invariant`."""
        return self.kernels.batch_invariant

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV that a token takes in all layers."""
        shape = self.spec.shape
        return 2 * len(self.spec.layers) * shape.kv_heads * shape.head_size * self.kernels.kv_dtype.itemsize

    def allocate_kv(self, blocks: int) -> None:
        """Makes the KV pool; see `Kernels.new_kv`. Once, before the first step."""
        self._kv = self.kernels.new_kv(len(self.spec.layers), blocks)
        self._fused = self.kernels.fuse(self._layers, self._kv)

    def make_slots(self, count: int) -> None:
        """Makes room in the host's memory for so many blocks; see `KVTensors.slots`."""
        self._slots = self._kv.slots(count)

    def swap(self, swaps: Swaps) -> None:
        """Copies blocks out to the host's memory and in from there."""
        self._kv.swap(self._slots, swaps.outs, swaps.ins)

    def copy_blocks(self, copies: list[tuple[int, int]]) -> None:
        """Copies whole KV blocks, (from, to)."""
        self._kv.copy_blocks(copies)

    @torch.inference_mode()
    def forward(self, tokens: torch.Tensor, batch: AttentionBatch, wanted: torch.Tensor) -> torch.Tensor:
        """One step: writes the rows' KV and returns logits, good until the next step.

        tokens: (rows,) int64. wanted: (m,) int64, rows that get logits, ascending. Both, and the batch, are the host's.
        Returns (m, vocabulary) float32, on the kernels' device.
        """
        asked = len(wanted)
        staged = self.kernels.stage(tokens, batch, wanted)
        return self.kernels.run(lambda: self._compute(*staged))[:asked]

    def _compute(self, tokens: torch.Tensor, batch: AttentionBatch, wanted: torch.Tensor) -> torch.Tensor:
        """Of what was staged."""
        residual = torch.nn.functional.embedding(tokens, self._embedding)
        if self.spec.embedding_scale != 1.0:
            residual *= torch.tensor(self.spec.embedding_scale, dtype=self.dtype)  # rounded, as it was trained
        residual, delta = (self._fused or self._one_by_one)(residual, batch, wanted)
        if not len(wanted):
            return torch.empty(0, self.spec.vocabulary, device=residual.device)
        last = self._layers[-1].mlp_out_norm
        x = self.kernels.add_rms_norm(residual, delta, self._norm, last)
        logits = self.kernels.logits(x, self._head)
        if cap := self.spec.logit_cap:
            logits = torch.tanh(logits / cap) * cap
        return logits

    def _one_by_one(
        self, residual: torch.Tensor, batch: AttentionBatch, wanted: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What `FusedLayers` does, operation by operation."""
        kernels = self.kernels
        delta: torch.Tensor | None = None
        inner: torch.Tensor | None = None
        for layer, keys, values in zip(self._layers, self._kv.keys, self._kv.values, strict=True):
            x = kernels.add_rms_norm(residual, delta, layer.attention_norm, inner)
            queries = kernels.rope_and_store(kernels.linear(x, layer.qkv), layer.positions, keys, values, batch)
            attended = kernels.attention(queries, keys, values, batch, layer.window)
            x = kernels.add_rms_norm(
                residual, kernels.linear(attended, layer.output), layer.mlp_norm, layer.attended_norm
            )
            delta = kernels.linear(kernels.gated(kernels.linear(x, layer.gate_up)), layer.down)
            inner = layer.mlp_out_norm
        assert delta is not None, "a decoder has layers"
        return residual[wanted], delta[wanted]


class _Reader:
    """Takes tensors out of a checkpoint, checks their shapes and counts them."""

    def __init__(
        self, spec: DecoderSpec, weight: Callable[[str], torch.Tensor], kernels: Kernels, dtype: torch.dtype
    ) -> None:
        self.parameters = 0
        self._spec = spec
        self._weight = weight
        self._kernels = kernels
        self._dtype = dtype

    def _take(self, name: str) -> torch.Tensor:
        tensor = self._weight(name)
        self.parameters += tensor.numel()
        return tensor.to(self._kernels.device)

    def norm(self, name: str, size: int) -> torch.Tensor:
        weight = self._shaped(name + ".weight", (size,)).float()
        return weight + 1.0 if self._spec.unit_norms else weight.clone()

    def matrix(self, *names: str, rows: int, columns: int) -> torch.Tensor:
        parts = [self._shaped(name + ".weight", (None, columns)).to(self._dtype) for name in names]
        if sum(map(len, parts)) != rows:
            raise CheckpointError(
                f"{' + '.join(names)} has {sum(map(len, parts))} rows; by config.json it has {rows} rows"
            )
        return torch.cat(parts).contiguous()

    def linear(self, rows: int, columns: int, *names: str, bias: bool = False) -> Packed:
        weight = self.matrix(*names, rows=rows, columns=columns)
        if not bias:
            return self._kernels.pack(weight)
        parts = [self._shaped(name + ".bias", (None,)).to(self._dtype) for name in names]
        if sum(map(len, parts)) != rows:
            raise CheckpointError(
                f"the bias of {' + '.join(names)} has {sum(map(len, parts))} rows; by config.json it has {rows} rows"
            )
        return self._kernels.pack(weight, torch.cat(parts))

    def _shaped(self, name: str, shape: tuple[int | None, ...]) -> torch.Tensor:
        """Return a tensor. Raise CheckpointError if it has another shape; None stands for any size."""
        tensor = self._take(name)
        if len(tensor.shape) != len(shape) or any(
            size not in (None, real) for size, real in zip(shape, tensor.shape, strict=True)
        ):
            wanted = " x ".join("any" if size is None else str(size) for size in shape)
            raise CheckpointError(f"{name} has the shape {tuple(tensor.shape)}; by config.json it has {wanted}")
        return tensor
