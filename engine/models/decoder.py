"""Decoder-only transformer of all model families, as a sequence of kernel calls."""

from collections.abc import Callable

import torch

from engine.errors import CheckpointError
from engine.kernels import AttentionBatch, Kernels, LayerWeights, Positions
from engine.kernels.base import PackedWeight
from engine.kv.host_offload import Swaps
from engine.models.rope import Rope, rotary_table
from engine.models.spec import DecoderSpec, LayerSpec


class Decoder:
    """A loaded model and its KV pool. Weights are packed once, on creation; `forward` has no state but the KV.

    In every layer the keys and values of all rows are written before any row attends.
    """

    def __init__(
        self, spec: DecoderSpec, weight: Callable[[str], torch.Tensor], kernels: Kernels, dtype: torch.dtype
    ) -> None:
        """Load and pack the weights. `weight` returns tensors by their checkpoint names.

        Raises CheckpointError if a tensor is missing or has the wrong shape.
        """
        self.spec = spec
        self.dtype = dtype
        self.kernels = kernels
        self._tables: dict[int, torch.Tensor] = {}
        reader = _Reader(spec, weight, kernels, dtype)
        self._embedding = reader.matrix("model.embed_tokens", rows=spec.vocabulary, columns=spec.shape.hidden)
        self._head: PackedWeight | None = None
        """Head that computes logits; None if the model computes embeddings."""
        if spec.pooling is not None:
            pass
        elif spec.ties_embeddings:
            self._head = kernels.pack(self._embedding)
        else:
            self._head = reader.linear(spec.vocabulary, spec.shape.hidden, "lm_head")
        self._norm = reader.norm("model.norm", spec.shape.hidden)
        self._layers = [self._layer(reader, index, layer) for index, layer in enumerate(spec.layers)]
        self.parameters = reader.parameters

    def _layer(self, reader: "_Reader", index: int, layer: LayerSpec) -> LayerWeights:
        spec, shape, name = self.spec, self.spec.shape, f"model.layers.{index}."
        attention, mlp = name + "self_attn.", name + "mlp."
        width = (shape.heads + 2 * shape.kv_heads) * shape.head_size
        qkv, gate_up = [f"{attention}{part}_proj" for part in "qkv"], [mlp + "gate_proj", mlp + "up_proj"]
        if spec.has_fused_projections:
            qkv, gate_up = [attention + "qkv_proj"], [mlp + "gate_up_proj"]
        sandwich = spec.has_sandwich_norms
        return LayerWeights(
            attention_norm=reader.norm(name + "input_layernorm", shape.hidden),
            qkv=reader.linear(
                width,
                shape.hidden,
                *qkv,
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
                name + ("pre_feedforward" if sandwich else "post_attention") + "_layernorm", shape.hidden
            ),
            gate_up=reader.linear(
                2 * shape.intermediate,
                shape.hidden,
                *gate_up,
                bias=spec.mlp_bias,
            ),
            down=reader.linear(shape.hidden, shape.intermediate, mlp + "down_proj", bias=spec.mlp_bias),
            attention_out_norm=reader.norm(name + "post_attention_layernorm", shape.hidden) if sandwich else None,
            mlp_out_norm=reader.norm(name + "post_feedforward_layernorm", shape.hidden) if sandwich else None,
            window=layer.window,
        )

    def _table(self, rope: Rope) -> torch.Tensor:
        """Return the rotary table of a layer. Layers with equal rotary positions share one."""
        if id(rope) not in self._tables:
            self._tables[id(rope)] = rotary_table(rope, self.spec.window).to(self.kernels.device)
        return self._tables[id(rope)]

    @property
    def width(self) -> int:
        """Number of values in each row that `forward` returns."""
        return self.spec.vocabulary if self.spec.pooling is None else self.spec.shape.hidden

    @property
    def kv_bytes_per_token(self) -> int:
        """Size of a token's KV in all layers, in bytes."""
        shape = self.spec.shape
        return 2 * len(self.spec.layers) * shape.kv_heads * shape.head_size * self.kernels.kv_dtype.itemsize

    def allocate_kv(self, blocks: int) -> None:
        """Allocate the KV pool; see `Kernels.new_kv`. Call it once, before the first step."""
        self._kv = self.kernels.new_kv(len(self.spec.layers), blocks)
        self._fused = self.kernels.fuse(self._layers, self._kv)

    def make_slots(self, count: int) -> None:
        """Allocate host memory for `count` offloaded blocks; see `KVTensors.slots`."""
        self._slots = self._kv.slots(count)

    def swap(self, swaps: Swaps) -> None:
        """Copy blocks out to host memory and in from there."""
        self._kv.swap(self._slots, swaps.outs, swaps.ins)

    def copy_blocks(self, copies: list[tuple[int, int]]) -> None:
        """Copy whole KV blocks in every layer. `copies`: pairs of block numbers, (from, to)."""
        self._kv.copy_blocks(copies)

    @torch.inference_mode()
    def forward(self, tokens: torch.Tensor, batch: AttentionBatch, logit_rows: torch.Tensor) -> torch.Tensor:
        """Run one step: write the rows' KV and return logits, valid until the next step.

        `tokens`: (rows,) int64. `logit_rows`: (m,) int64, rows that get logits, ascending. These and the batch are in
        host memory. Returns (m, vocabulary) float32 on the kernels' device. A model that computes embeddings returns
        the normalised hidden states instead, (m, hidden) float32.
        """
        row_count = len(logit_rows)
        staged = self.kernels.stage(tokens, batch, logit_rows)
        return self.kernels.run(lambda: self._compute(*staged))[:row_count]

    def _compute(self, tokens: torch.Tensor, batch: AttentionBatch, logit_rows: torch.Tensor) -> torch.Tensor:
        """Compute the logits of a staged step."""
        residual = torch.nn.functional.embedding(tokens, self._embedding)
        if self.spec.embedding_scale != 1.0:
            residual *= torch.tensor(self.spec.embedding_scale, dtype=self.dtype)  # rounded, as in training
        residual = residual.float()
        residual, delta = (self._fused or self._layer_by_layer)(residual, batch, logit_rows)
        if not len(logit_rows):
            return torch.empty(0, self.width, device=residual.device)
        last = self._layers[-1].mlp_out_norm
        x = self.kernels.add_rms_norm(residual, delta, self._norm, last)
        if self._head is None:
            return x.float()
        logits = self.kernels.linear_float32(x, self._head)
        if cap := self.spec.logit_cap:
            logits = torch.tanh(logits / cap) * cap
        return logits

    def _layer_by_layer(
        self, residual: torch.Tensor, batch: AttentionBatch, logit_rows: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run all layers operation by operation, with the same results as `FusedLayers`."""
        kernels = self.kernels
        delta: torch.Tensor | None = None
        inner: torch.Tensor | None = None
        project = kernels.linear if kernels.qkv_dtype is self.dtype else kernels.linear_float32
        for layer, keys, values in zip(self._layers, self._kv.keys, self._kv.values, strict=True):
            x = kernels.add_rms_norm(residual, delta, layer.attention_norm, inner)
            queries = kernels.rope_and_store(project(x, layer.qkv), layer.positions, keys, values, batch)
            attended = kernels.attention(queries, keys, values, batch, layer.window)
            x = kernels.add_rms_norm(
                residual, kernels.linear_float32(attended, layer.output), layer.mlp_norm, layer.attention_out_norm
            )
            delta = kernels.linear_float32(kernels.gated(kernels.linear(x, layer.gate_up)), layer.down)
            inner = layer.mlp_out_norm
        assert delta is not None, "a decoder has layers"
        return residual[logit_rows], delta[logit_rows]


class _Reader:
    """Reader of a checkpoint's tensors: it checks their shapes and counts their elements."""

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
        return weight + 1.0 if self._spec.has_unit_norms else weight.clone()

    def matrix(self, *names: str, rows: int, columns: int) -> torch.Tensor:
        parts = [self._shaped(name + ".weight", (None, columns)).to(self._dtype) for name in names]
        if sum(map(len, parts)) != rows:
            raise CheckpointError(f"{' + '.join(names)} has {sum(map(len, parts))} rows; config.json implies {rows}")
        return torch.cat(parts).contiguous()

    def linear(self, rows: int, columns: int, *names: str, bias: bool = False) -> PackedWeight:
        weight = self.matrix(*names, rows=rows, columns=columns)
        if not bias:
            return self._kernels.pack(weight)
        parts = [self._shaped(name + ".bias", (None,)).to(self._dtype) for name in names]
        if sum(map(len, parts)) != rows:
            raise CheckpointError(
                f"the bias of {' + '.join(names)} has {sum(map(len, parts))} rows; config.json implies {rows}"
            )
        return self._kernels.pack(weight, torch.cat(parts))

    def _shaped(self, name: str, shape: tuple[int | None, ...]) -> torch.Tensor:
        """Return a tensor. Raise CheckpointError if it has another shape; None stands for any size."""
        tensor = self._take(name)
        if len(tensor.shape) != len(shape) or any(
            size not in (None, real) for size, real in zip(shape, tensor.shape, strict=True)
        ):
            expected = " x ".join("any" if size is None else str(size) for size in shape)
            raise CheckpointError(f"{name} has the shape {tuple(tensor.shape)}; config.json implies {expected}")
        return tensor
