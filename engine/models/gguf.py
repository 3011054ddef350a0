"""Conversion of GGUF files, once, into a checkpoint folder (config, safetensors, tokenizer) in the cache.

Parsing 100,000 metadata strings and dequantising take seconds, and with one folder format there is one loader.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.quants import dequantize
from safetensors.torch import save_file
from tqdm import tqdm

from engine.errors import CheckpointError
from engine.models.gguf_metadata import Metadata
from engine.models.gguf_tokenizer import write_tokenizer

_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Tensors of a layer, except for the norms after attention, whose names depend on the family."""
_NORMS = {"ffn_norm": "post_attention_layernorm"}
_SANDWICH_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_ROPE_TENSORS = {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}


@dataclass(frozen=True)
class _Family:
    """Conventions of llama.cpp for a model family.

    `is_interleaved`: rotary halves of queries and keys are interleaved.
    `has_unit_norms`: llama.cpp added one to the norm weights.
    `largest`: layer count of the one model size whose attention is scaled by hidden size and heads instead of the head
        size.
    """

    architecture: str
    is_interleaved: bool = False
    has_unit_norms: bool = False
    has_sandwich_norms: bool = False
    has_fused_projections: bool = False
    largest: int = 0


_FAMILIES = {
    "llama": _Family("LlamaForCausalLM", is_interleaved=True),
    "smollm3": _Family("SmolLM3ForCausalLM", is_interleaved=True),
    "qwen2": _Family("Qwen2ForCausalLM"),
    "qwen3": _Family("Qwen3ForCausalLM"),
    "gemma2": _Family("Gemma2ForCausalLM", has_unit_norms=True, has_sandwich_norms=True, largest=46),
    "gemma3": _Family("Gemma3ForCausalLM", has_unit_norms=True, has_sandwich_norms=True, largest=62),
    "phi3": _Family("Phi3ForCausalLM", has_fused_projections=True),
}


def convert(path: Path, folder: Path, dtype: torch.dtype) -> None:
    """Convert a GGUF file into the checkpoint folder `folder`, which appears atomically.

    Weights are dequantised to float32 and rounded to `dtype`. Raises CheckpointError for an architecture, tokenizer or
    tensor that is not supported.
    """
    try:
        _convert(path, folder, dtype)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be converted into {folder}: {error}") from error
    except Exception as error:  # the reader does not validate the file: a corrupt one may raise anything
        raise CheckpointError(f"{path} is corrupt: {type(error).__name__}: {error}") from error


def _convert(path: Path, folder: Path, dtype: torch.dtype) -> None:
    try:
        reader = gguf.GGUFReader(path)
    except Exception as error:  # as above
        raise CheckpointError(f"{path} cannot be read as GGUF: {error}") from error
    fields = Metadata(reader, path)
    name = fields.require("general.architecture")
    if name not in _FAMILIES:
        raise CheckpointError(f"{path} has architecture {name!r}; supported in GGUF: {', '.join(_FAMILIES)}")
    family = _FAMILIES[name]
    by_name = {tensor.name: tensor for tensor in reader.tensors}
    config = _config(fields, name, family, by_name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".convert-", ignore_cleanup_errors=True) as directory:
        scratch = Path(directory) / folder.name
        scratch.mkdir()
        tensors = {}
        for tensor in tqdm(reader.tensors, desc=f"converting {path.name}", unit="tensor", disable=None):
            if tensor.name in _ROPE_TENSORS:
                continue
            target = _target_name(tensor.name, family, path)
            weight = _dequantize(tensor)
            if family.is_interleaved and ("q_proj" in target or "k_proj" in target):
                heads = config["num_attention_heads" if "q_proj" in target else "num_key_value_heads"]
                weight = _unpermute(weight, heads)
            if family.has_unit_norms and "norm" in target:
                weight = weight - 1.0
            tensors[target] = weight.to(dtype).contiguous()
        config["tie_word_embeddings"] = "lm_head.weight" not in tensors
        config["attention_bias"] = "model.layers.0.self_attn.o_proj.bias" in tensors
        save_file(tensors, scratch / "model.safetensors", metadata={"format": "pt"})
        (scratch / "config.json").write_text(json.dumps(config, indent=1))
        write_tokenizer(fields, scratch)
        _move_into_place(scratch, folder)


def _dequantize(tensor: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))


def _move_into_place(finished: Path, target: Path) -> None:
    """Rename a folder to its target. If several processes convert a file, the first wins."""
    try:
        finished.rename(target)
    except OSError:
        if not target.is_dir():
            raise


def _config(fields: Metadata, name: str, family: _Family, tensors: dict[str, Any]) -> dict[str, Any]:
    """Return the content of `config.json`."""

    def optional(key: str, default: Any = None) -> Any:
        return fields.get(f"{name}.{key}", default)

    def require(key: str) -> Any:
        return fields.require(f"{name}.{key}")

    heads, hidden, layers = require("attention.head_count"), require("embedding_length"), require("block_count")
    rotated = optional("rope.dimension_count")
    head_size = optional("attention.key_length") or (rotated if family.is_interleaved and rotated else hidden // heads)
    window = require("context_length")
    config = {
        "architectures": [family.architecture],
        "hidden_size": hidden,
        "intermediate_size": require("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": optional("attention.head_count_kv", heads),
        "head_dim": head_size,
        "hidden_act": "gelu_pytorch_tanh" if family.has_sandwich_norms else "silu",
        # GGUF stores a float32; the nearest short decimal is the original value
        "rms_norm_eps": float(f"{require('attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_theta": float(optional("rope.freq_base", 10000.0)),
        "partial_rotary_factor": (rotated or head_size) / head_size,
        "rope_scaling": _rope_scaling(fields, name, window, tensors),
        "max_position_embeddings": window,
        "sliding_window": optional("attention.sliding_window"),
        "attn_logit_softcapping": optional("attn_logit_softcapping"),
        "final_logit_softcapping": optional("final_logit_softcapping"),
        "vocab_size": len(fields.require("tokenizer.ggml.tokens")),
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": fields.get("tokenizer.ggml.eos_token_id"),
    }
    if family.largest == layers:
        config["query_pre_attn_scalar"] = hidden // heads
    if name == "smollm3":
        config["no_rope_layers"] = [int((layer + 1) % 4 != 0) for layer in range(layers)]
    return config


def _rope_scaling(fields: Metadata, name: str, window: int, tensors: dict[str, Any]) -> dict[str, Any] | None:
    kind = fields.get(f"{name}.rope.scaling.type", "none")
    factor = fields.get(f"{name}.rope.scaling.factor", 1.0)
    original = fields.get(f"{name}.rope.scaling.original_context_length") or window
    if "rope_factors_long.weight" in tensors:
        short, long = (_dequantize(tensors[f"rope_factors_{which}.weight"]).tolist() for which in ("short", "long"))
        return {
            "rope_type": "longrope",
            "short_factor": short,
            "long_factor": long,
            "original_max_position_embeddings": original,
            "attention_factor": fields.get(f"{name}.rope.scaling.attn_factor"),
        }
    if "rope_freqs.weight" in tensors:  # Llama 3's scaling, computed by the converter that wrote the file
        factors = _dequantize(tensors["rope_freqs.weight"]).tolist()
        return {"rope_type": "longrope", "short_factor": factors, "long_factor": factors, "attention_factor": 1.0}
    if kind == "none":
        return None
    return {"rope_type": kind, "factor": factor, "original_max_position_embeddings": original}


def _target_name(name: str, family: _Family, path: Path) -> str:
    if name in _TENSORS:
        return _TENSORS[name]
    block, _, rest = name.partition(".")
    layer, _, rest = rest.partition(".")
    part, _, kind = rest.rpartition(".")
    if block == "blk" and kind in ("weight", "bias"):
        if family.has_fused_projections and part == "ffn_up":
            return f"model.layers.{layer}.mlp.gate_up_proj.{kind}"
        parts = _PARTS | (_SANDWICH_NORMS if family.has_sandwich_norms else _NORMS)
        if part in parts:
            return f"model.layers.{layer}.{parts[part]}.{kind}"
    raise CheckpointError(f"{path} holds a tensor {name!r} that {family.architecture} does not have")


def _unpermute(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Return the weight with rotary halves in the original checkpoint's order; llama.cpp interleaves them."""
    half = len(weight) // heads // 2
    return weight.reshape(heads, half, 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)
