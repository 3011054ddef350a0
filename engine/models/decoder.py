"""The decoder-only transformer, as a sequence of kernel calls."""

import math
from collections.abc import Callable

import torch

from engine.kernels import AttentionBatch, Kernels, LayerWeights
from engine.models.checkpoint import DecoderSpec, RopeScaling


class Decoder:
    """A loaded model and its KV pool. Weights are packed once, when it is made; `forward` keeps no state but the KV.

    In every layer the keys and values of all rows are written before any row attends.
    """

    def __init__(
        self, spec: DecoderSpec, weight: Callable[[str], torch.Tensor], kernels: Kernels, dtype: torch.dtype
    ) -> None:
        """`weight` gives tensors by their checkpoint names. Raises CheckpointError for a missing one."""
        self.spec = spec
        self.dtype = dtype
        self._kernels = kernels
        self.parameters = 0

        def take(*names: str) -> torch.Tensor:
            parts = [weight(name) for name in names]
            self.parameters += sum(part.numel() for part in parts)
            return torch.cat([part.to(dtype) for part in parts]).contiguous()

        self._embedding = take("model.embed_tokens.weight")
        self._head = kernels.pack(self._embedding if spec.tied else take("lm_head.weight"))
        self._norm = take("model.norm.weight")
        self._layers = []
        for index in range(spec.layers):
            name = f"model.layers.{index}."
            attention = name + "self_attn."
            self._layers.append(
                LayerWeights(
                    attention_norm=take(name + "input_layernorm.weight"),
                    qkv=kernels.pack(take(*(f"{attention}{part}_proj.weight" for part in "qkv"))),
                    output=kernels.pack(take(attention + "o_proj.weight")),
                    mlp_norm=take(name + "post_attention_layernorm.weight"),
                    gate_up=kernels.pack(take(name + "mlp.gate_proj.weight", name + "mlp.up_proj.weight")),
                    down=kernels.pack(take(name + "mlp.down_proj.weight")),
                )
            )
        self._rotary = rotary_table(spec.window, spec.head_size, spec.rope_theta, spec.rope_scaling)

    @property
    def batch_invariant(self) -> bool:
        """See `Kernels.batch_invariant`."""
        return self._kernels.batch_invariant

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV that a token takes in all layers."""
        return 2 * self.spec.layers * self.spec.kv_heads * self.spec.head_size * self.dtype.itemsize

    def allocate_kv(self, blocks: int) -> None:
        """Makes the KV pool; see `Kernels.new_kv`. Once, before the first step."""
        self._kv = self._kernels.new_kv(self.spec.layers, blocks)
        self._fused = self._kernels.fuse(self._layers, self._kv, self._rotary, self.spec.norm_eps)

    def copy_blocks(self, copies: list[tuple[int, int]]) -> None:
        """Copies whole KV blocks, (from, to)."""
        self._kv.copy_blocks(copies)

    @torch.inference_mode()
    def forward(self, tokens: torch.Tensor, batch: AttentionBatch, wanted: torch.Tensor) -> torch.Tensor:
        """One step: writes the rows' KV and returns logits.

        tokens: (rows,) int64. wanted: (m,) int64, rows that get logits. Returns (m, vocabulary) float32.
        """
        kernels = self._kernels
        residual = torch.nn.functional.embedding(tokens, self._embedding)
        delta = self._one_by_one(residual, batch) if self._fused is None else self._fused(residual, batch)
        if not len(wanted):
            return torch.empty(0, self.spec.vocabulary)
        x = kernels.add_rms_norm(residual[wanted], delta[wanted], self._norm, self.spec.norm_eps)
        return kernels.logits(x, self._head)

    def _one_by_one(self, residual: torch.Tensor, batch: AttentionBatch) -> torch.Tensor:
        """What `FusedLayers` does, operation by operation."""
        kernels, eps = self._kernels, self.spec.norm_eps
        delta: torch.Tensor | None = None
        for layer, keys, values in zip(self._layers, self._kv.keys, self._kv.values, strict=True):
            x = (
                kernels.rms_norm(residual, layer.attention_norm, eps)
                if delta is None
                else kernels.add_rms_norm(residual, delta, layer.attention_norm, eps)
            )
            queries = kernels.rope_and_store(kernels.linear(x, layer.qkv), self._rotary, keys, values, batch)
            attended = kernels.linear(kernels.attention(queries, keys, values, batch), layer.output)
            x = kernels.add_rms_norm(residual, attended, layer.mlp_norm, eps)
            delta = kernels.linear(kernels.silu_mul(kernels.linear(x, layer.gate_up)), layer.down)
        assert delta is not None, "a decoder has layers"
        return delta


def rotary_table(window: int, head_size: int, theta: float, scaling: RopeScaling | None) -> torch.Tensor:
    """(window, head_size) float32: cosines of the head's first half, then the sines, by position."""
    frequencies = 1.0 / theta ** (torch.arange(0, head_size, 2, dtype=torch.float32) / head_size)
    if scaling is not None:
        low = scaling.original_window / scaling.low_frequency_factor
        high = scaling.original_window / scaling.high_frequency_factor
        wavelengths = 2 * math.pi / frequencies
        smooth = (scaling.original_window / wavelengths - scaling.low_frequency_factor) / (
            scaling.high_frequency_factor - scaling.low_frequency_factor
        )
        blended = (1 - smooth) * frequencies / scaling.factor + smooth * frequencies
        frequencies = torch.where(
            wavelengths > low,
            frequencies / scaling.factor,
            torch.where(wavelengths < high, frequencies, blended),
        )
    angles = torch.arange(window, dtype=torch.float32).unsqueeze(1) * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=1)
