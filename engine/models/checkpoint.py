"""A checkpoint folder: what the model is, and its weights by name."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from engine.errors import CheckpointError

SUPPORTED = ("LlamaForCausalLM",)


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's stretching of low rotary frequencies (meta-llama/llama-models, `apply_scaling`)."""

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_window: int


@dataclass(frozen=True)
class DecoderSpec:
    """The shape of a decoder. Sizes are in elements, `window` in tokens."""

    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    window: int
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    tied: bool


def read_spec(folder: Path) -> DecoderSpec:
    """The spec in `config.json`. Raises CheckpointError for an architecture or option not supported."""
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no config.json; a model folder holds config.json, safetensors, tokenizer")
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    architecture = next(iter(config.get("architectures") or []), "none")
    if architecture not in SUPPORTED:
        raise CheckpointError(f"{folder} is of architecture {architecture}; supported: {', '.join(SUPPORTED)}")
    for key, only in (("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False)):
        if config.get(key, only) != only:
            raise CheckpointError(f"{folder} has {key} = {config[key]!r}; supported: {only!r}")
    heads = config["num_attention_heads"]
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return DecoderSpec(
        architecture=architecture,
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_size=config.get("head_dim") or config["hidden_size"] // heads,
        intermediate=config["intermediate_size"],
        vocabulary=config["vocab_size"],
        window=config["max_position_embeddings"],
        norm_eps=config["rms_norm_eps"],
        rope_theta=rope.get("rope_theta") or config.get("rope_theta") or 10000.0,
        rope_scaling=_rope_scaling(rope, folder),
        tied=config.get("tie_word_embeddings", False),
    )


def _rope_scaling(rope: dict[str, Any], folder: Path) -> RopeScaling | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind != "llama3":
        raise CheckpointError(f"{folder} scales its rotary positions by {kind!r}; supported: default, llama3")
    return RopeScaling(
        rope["factor"],
        rope["low_freq_factor"],
        rope["high_freq_factor"],
        rope["original_max_position_embeddings"],
    )


def open_weights(folder: Path) -> Callable[[str], torch.Tensor]:
    """A function from tensor name to tensor, memory-mapped, over one safetensors file or several.

    It raises CheckpointError for a name that no file holds.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} holds no .safetensors file")
    handles = [safe_open(file, framework="pt") for file in files]
    owner = {name: handle for handle in handles for name in handle.keys()}  # noqa: SIM118 (not a dict)

    def weight(name: str) -> torch.Tensor:
        if name not in owner:
            raise CheckpointError(f"{folder} lacks the tensor {name!r}")
        tensor: torch.Tensor = owner[name].get_tensor(name)
        return tensor

    return weight
