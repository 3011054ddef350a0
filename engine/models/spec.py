"""Specification of a checkpoint's decoder, for all model families, read from `config.json`."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.errors import CheckpointError
from engine.json_files import read_object
from engine.kernels import LayerShape
from engine.models.pooling import PoolingSpec, read_pooling
from engine.models.rope import Rope, number, read_rope

_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu"}


@dataclass(frozen=True)
class LayerSpec:
    """Properties that differ between layers. `window`: maximum number of keys that a row sees, 0 for all. `rope`: None
    for a layer without positions."""

    window: int
    rope: Rope | None


@dataclass(frozen=True)
class DecoderSpec:
    """Shape of a decoder. Sizes are in elements, `window` in tokens.

    `has_unit_norms`: the checkpoint stores norm weights minus one.
    `has_sandwich_norms`: the outputs of attention and MLP are normalised before the residual addition.
    `has_fused_projections`: the checkpoint stores queries, keys and values as one tensor, and gate and up as one.
    `embedding_scale` multiplies embeddings; `logit_cap`, if not 0, bounds logits. `pooling`: how the hidden states
    become an embedding; None for a model that generates text.
    """

    architecture: str
    shape: LayerShape
    layers: tuple[LayerSpec, ...]
    vocabulary: int
    window: int
    ties_embeddings: bool
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    head_norms: bool = False
    has_unit_norms: bool = False
    has_sandwich_norms: bool = False
    has_fused_projections: bool = False
    embedding_scale: float = 1.0
    logit_cap: float = 0.0
    pooling: PoolingSpec | None = None


Config = dict[str, Any]


def _llama(config: Config) -> dict[str, Any]:
    bias = bool(config.get("attention_bias"))
    return {"qkv_bias": bias, "output_bias": bias, "mlp_bias": bool(config.get("mlp_bias"))}


def _gemma(config: Config) -> dict[str, Any]:
    return {
        **_llama(config),
        "has_unit_norms": True,
        "has_sandwich_norms": True,
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
    "Phi3ForCausalLM": lambda config: {"has_fused_projections": True},
}
"""Fields of `DecoderSpec` that a family needs beyond those read from names that the configs of all families share."""

_TIED = frozenset({"Gemma2ForCausalLM", "Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"})
"""Families whose configs may omit that the output head is the embedding."""

SUPPORTED_ARCHITECTURES = tuple(_FAMILIES)
_MODEL_TYPES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "SmolLM3ForCausalLM": "smollm3",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3_text",
    "Gemma3ForConditionalGeneration": "gemma3",
    "Phi3ForCausalLM": "phi3",
}
"""`model_type` of each architecture. A checkpoint with another one is a different model."""
_MAX_LAYERS = 10_000


def read_spec(folder: Path) -> DecoderSpec:
    """Return the specification in `config.json`. Raise CheckpointError if the architecture or an option is not
    supported."""
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no config.json; a model folder holds config.json, safetensors, tokenizer")
    config: Config = read_object(path)
    named = config.get("architectures")
    architecture = named[0] if isinstance(named, list) and named else "none"
    pooling = read_pooling(folder)
    if pooling is not None and isinstance(architecture, str):  # a model without a head, such as Qwen3Model
        architecture = re.sub("(Text)?Model$", "ForCausalLM", architecture)
    if not isinstance(architecture, str) or architecture not in _FAMILIES:
        raise CheckpointError(
            f"{folder} has architecture {architecture}; supported: {', '.join(SUPPORTED_ARCHITECTURES)}"
        )
    kind = config.get("model_type", _MODEL_TYPES[architecture])  # folders made from GGUF files have none
    if kind != _MODEL_TYPES[architecture]:
        raise CheckpointError(
            f"{path}: model_type is {kind!r}, but {architecture} needs {_MODEL_TYPES[architecture]!r}"
        )
    if isinstance(config.get("text_config"), dict):  # a vision-language model, of which only the text decoder runs here
        config = {**config, **config["text_config"]}
    try:
        _check(config)
        return replace(_spec(architecture, config), pooling=pooling)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except KeyError as error:
        raise CheckpointError(f"{path} lacks {error}") from error
    except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise CheckpointError(f"{path} is invalid: {error}") from error


def _check(config: Config) -> None:
    """Raise CheckpointError for a config that the decoder does not support, or that is inconsistent."""
    if config.get("quantization_config"):
        method = config["quantization_config"]
        method = method.get("quant_method", method) if isinstance(method, dict) else method
        raise CheckpointError(f"its weights are quantized ({method}); use floating-point weights or a GGUF file")
    if config.get("is_causal") is False or config.get("use_bidirectional_attention"):
        raise CheckpointError("its attention sees later tokens; only causal attention is supported")
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        _positive(config[name], name)
    _positive(config["max_position_embeddings"], "max_position_embeddings")
    for name in ("num_key_value_heads", "head_dim", "sliding_window"):
        if config.get(name) is not None:
            _positive(config[name], name)
    heads, kv_heads = config["num_attention_heads"], config.get("num_key_value_heads") or config["num_attention_heads"]
    if heads % kv_heads:
        raise CheckpointError(f"num_attention_heads = {heads} is not a multiple of num_key_value_heads = {kv_heads}")
    if config.get("head_dim") is None and config["hidden_size"] % heads:
        hidden = config["hidden_size"]
        raise CheckpointError(f"hidden_size = {hidden} is not a multiple of num_attention_heads = {heads}")
    if config["num_hidden_layers"] > _MAX_LAYERS:
        raise CheckpointError(f"num_hidden_layers = {config['num_hidden_layers']} is too large")
    number(config["rms_norm_eps"], "rms_norm_eps", minimum=0.0)
    for name in ("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"):
        if config.get(name) is not None:
            number(config[name], name)
    for name in ("layer_types", "no_rope_layers"):
        if config.get(name) and len(config[name]) != config["num_hidden_layers"]:
            raise CheckpointError(f"{name} has {len(config[name])} entries for {config['num_hidden_layers']} layers")
    unknown = {*(config.get("layer_types") or ())} - {"full_attention", "sliding_attention"}
    if unknown:
        raise CheckpointError(f"layer_types has {min(map(str, unknown))!r}; known: full_attention, sliding_attention")


def _positive(value: Any, name: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"{name} = {value!r} is not a positive integer")


def _spec(architecture: str, config: Config) -> DecoderSpec:
    activation = config.get("hidden_activation") or config.get("hidden_act") or "silu"
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise CheckpointError(f"hidden_act = {activation!r}; supported: {', '.join(_ACTIVATIONS)}")
    heads = config["num_attention_heads"]
    head_size = config.get("head_dim") or config["hidden_size"] // heads
    layers = _layers(architecture, config, head_size)
    shape = LayerShape(
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_size=head_size,
        rotary_size=max((layer.rope.rotary_size for layer in layers if layer.rope), default=0),
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
        ties_embeddings=config.get("tie_word_embeddings", architecture in _TIED),
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
    has_positions = config.get("no_rope_layers") or [1] * count  # SmolLM3: 0 where a layer has no positions
    return tuple(
        LayerSpec(window if slides else 0, (local if slides else everywhere) if is_rotated else None)
        for slides, is_rotated in zip(sliding, has_positions, strict=True)
    )


def _sliding(architecture: str, config: Config, count: int) -> list[bool]:
    """Return for each layer whether it has a sliding window."""
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
