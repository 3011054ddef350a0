"""What a checkpoint's decoder is like: one description for all families, read from `config.json`."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import CheckpointError
from engine.kernels import LayerShape
from engine.models.rope import Rope, read_rope

_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu"}


@dataclass(frozen=True)
class LayerSpec:
    """What differs from layer to layer. `window`: keys a row sees at most, 0 for all. `rope`: None for a layer
    without positions."""

    window: int
    rope: Rope | None


@dataclass(frozen=True)
class DecoderSpec:
    """The shape of a decoder. Sizes are in elements, `window` in tokens.

    `unit_norms`: norm weights are stored as their distance from one. `sandwich`: what is added to the residual is
    normalised too. `fused`: the checkpoint holds queries, keys and values as one tensor, and gate and up.
    `embedding_scale` multiplies embeddings; `logit_cap`, if not 0, bounds logits.
    """

    architecture: str
    shape: LayerShape
    layers: tuple[LayerSpec, ...]
    vocabulary: int
    window: int
    tied: bool
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    head_norms: bool = False
    unit_norms: bool = False
    sandwich: bool = False
    fused: bool = False
    embedding_scale: float = 1.0
    logit_cap: float = 0.0


Config = dict[str, Any]


def _llama(config: Config) -> dict[str, Any]:
    bias = bool(config.get("attention_bias"))
    return {"qkv_bias": bias, "output_bias": bias, "mlp_bias": bool(config.get("mlp_bias"))}


def _gemma(config: Config) -> dict[str, Any]:
    return {
        **_llama(config),
        "unit_norms": True,
        "sandwich": True,
        "embedding_scale": math.sqrt(config["hidden_size"]),
        "logit_cap": config.get("final_logit_softcapping") or 0.0,
    }


_FAMILIES: dict[str, Callable[[Config], dict[str, Any]]] = {
    "LlamaForCausalLM": _llama,
    "MistralForCausalLM": lambda config: {},
    "SmolLM3ForCausalLM": _llama,
    "Qwen2ForCausalLM": lambda config: {"qkv_bias": True},
    "Qwen3ForCausalLM": lambda config: {**_llama(config), "mlp_bias": False, "head_norms": True},
    "Gemma2ForCausalLM": _gemma,
    "Gemma3ForCausalLM": lambda config: {**_gemma(config), "head_norms": True},
    "Gemma3ForConditionalGeneration": lambda config: {**_gemma(config), "head_norms": True},
    "Phi3ForCausalLM": lambda config: {"fused": True},
}
"""What sets each family apart, besides what the config says under names that all share."""

_TIED = frozenset({"Gemma2ForCausalLM", "Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"})
"""Families whose configs may leave out that the head is the embedding."""

SUPPORTED = tuple(_FAMILIES)


def read_spec(folder: Path) -> DecoderSpec:
    """The spec in `config.json`. Raises CheckpointError for an architecture or option not supported."""
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no config.json; a model folder holds config.json, safetensors, tokenizer")
    config: Config = json.loads(path.read_text(encoding="utf-8"))
    architecture = next(iter(config.get("architectures") or []), "none")
    if architecture not in _FAMILIES:
        raise CheckpointError(f"{folder} is of architecture {architecture}; supported: {', '.join(SUPPORTED)}")
    if "text_config" in config:  # a model that also sees; its text half is what runs here
        config = {**config, **config["text_config"]}
    try:
        return _spec(architecture, config)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    except KeyError as error:
        raise CheckpointError(f"{path} says nothing of {error}") from error


def _spec(architecture: str, config: Config) -> DecoderSpec:
    activation = config.get("hidden_activation") or config.get("hidden_act") or "silu"
    if activation not in _ACTIVATIONS:
        raise CheckpointError(f"hidden_act = {activation!r}; supported: {', '.join(_ACTIVATIONS)}")
    heads = config["num_attention_heads"]
    head_size = config.get("head_dim") or config["hidden_size"] // heads
    layers = _layers(architecture, config, head_size)
    shape = LayerShape(
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_size=head_size,
        rotated=max((layer.rope.rotated for layer in layers if layer.rope), default=0),
        hidden=config["hidden_size"],
        intermediate=config["intermediate_size"],
        activation="silu" if _ACTIVATIONS[activation] == "silu" else "gelu",
        scale=(config.get("query_pre_attn_scalar") or head_size) ** -0.5,
        softcap=config.get("attn_logit_softcapping") or 0.0,
        eps=config["rms_norm_eps"],
    )
    return DecoderSpec(
        architecture=architecture,
        shape=shape,
        layers=layers,
        vocabulary=config["vocab_size"],
        window=config["max_position_embeddings"],
        tied=config.get("tie_word_embeddings", architecture in _TIED),
        **_FAMILIES[architecture](config),
    )


def _layers(architecture: str, config: Config, head_size: int) -> tuple[LayerSpec, ...]:
    count = config["num_hidden_layers"]
    sliding = _sliding(architecture, config, count)
    window = config.get("sliding_window") or 0
    if window >= config["max_position_embeddings"]:
        window = 0
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    by_kind: Config = parameters if "full_attention" in parameters else {}
    everywhere = read_rope(config, by_kind.get("full_attention") or parameters, head_size)
    local = everywhere
    if "sliding_attention" in by_kind:
        local = read_rope(config, by_kind["sliding_attention"], head_size)
    elif architecture.startswith("Gemma3"):
        local = read_rope(config, {}, head_size, config.get("rope_local_base_freq", 10000.0))
    turned = config.get("no_rope_layers") or [1] * count  # SmolLM3: 0 where a layer has no positions
    return tuple(
        LayerSpec(window if slides else 0, (local if slides else everywhere) if turns else None)
        for slides, turns in zip(sliding, turned, strict=True)
    )


def _sliding(architecture: str, config: Config, count: int) -> list[bool]:
    """Which layers see only a window."""
    if not config.get("sliding_window"):
        return [False] * count
    if config.get("use_sliding_window") is False:
        return [False] * count
    if config.get("layer_types"):
        return [kind == "sliding_attention" for kind in config["layer_types"]]
    if architecture == "Gemma2ForCausalLM":
        return [layer % 2 == 0 for layer in range(count)]
    if architecture.startswith("Gemma3"):
        pattern = config.get("sliding_window_pattern") or 6
        return [(layer + 1) % pattern != 0 for layer in range(count)]
    if architecture.startswith("Qwen"):
        return [layer >= config.get("max_window_layers", count) for layer in range(count)]
    return [True] * count
