"""Write small random checkpoints as Hugging Face folders."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from engine.config import DEFAULT_MODEL, default_cache
from engine.models.fetch import checkpoint_folder

VOCABULARY = 320

_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 5000.0,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
_LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0 + 0.02 * i for i in range(16)],
    "long_factor": [1.5 + 0.2 * i for i in range(16)],
    "original_max_position_embeddings": 64,
    "rope_theta": 10000.0,
}
_PHI = {"pad_token_id": 0, "attention_dropout": 0.0}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama 2": ("llama", {"num_key_value_heads": 4}),
    "Llama 3": ("llama", {"rope_parameters": _LLAMA3_ROPE}),
    "Llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "Llama, linear rope": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}),
    "SmolLM2": ("llama", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "SmolLM3": ("smollm3", {"no_rope_layers": [1, 0, 1], "num_hidden_layers": 3, "pad_token_id": 0}),
    "Mistral": ("mistral", {"sliding_window": None}),
    "Mistral 7B v0.1": ("mistral", {"sliding_window": 24}),
    "Qwen2": ("qwen2", {}),
    "Qwen2.5, yarn": ("qwen2", {"rope_parameters": _YARN, "tie_word_embeddings": True}),
    "Qwen2, sliding": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1, "num_hidden_layers": 3},
    ),
    "Qwen3": ("qwen3", {}),
    "Gemma 2": ("gemma2", {"sliding_window": 24, "query_pre_attn_scalar": 48, "num_hidden_layers": 3}),
    "Gemma 3": ("gemma3_text", {"sliding_window": 24, "query_pre_attn_scalar": 48, "num_hidden_layers": 7}),
    "Phi-3": ("phi3", {"sliding_window": 24, **_PHI}),
    "Phi-3, longrope": ("phi3", {"rope_parameters": _LONGROPE, "original_max_position_embeddings": 64, **_PHI}),
    "Phi-4 mini": (
        "phi3",
        {
            "head_dim": 64,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
            "partial_rotary_factor": 0.5,
            "tie_word_embeddings": True,
            **_PHI,
        },
    ),
}
"""Small models of each family: the model type of transformers, and settings that differ from the defaults."""


def write_tiny(
    folder: Path,
    family: str = "Llama 3",
    *,
    window: int = 256,
    shards: bool = False,
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> Path:
    """Write a random model of a family, with a byte tokenizer. `config`: arguments of transformers' config class."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, differences = FAMILIES[family]
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": window,
        "initializer_range": 0.3,
        "bos_token_id": 256,
        "eos_token_id": 257,
        "tie_word_embeddings": False,
    }
    if kind == "phi3":  # the size of its heads follows from the hidden size
        shape["hidden_size"] = shape["num_attention_heads"] * differences.get("head_dim", 32)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**shape, **differences, **config}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):  # their initial ones and zeros would hide errors
                parameter += 0.3 * torch.randn(parameter.shape)
    model.to(dtype).save_pretrained(folder, max_shard_size="100KB" if shards else "5GB")
    write_byte_tokenizer(folder)
    return folder


def write_tiny_llama(folder: Path, **config: Any) -> Path:
    """Write a random Llama with plain rotary positions; see `write_tiny`."""
    return write_tiny(folder, "Llama 3", **{"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, **config})


def write_tiny_default(folder: Path, *, window: int) -> Path:
    """Write a random Llama with the tokenizer of the default model.

    One in a hundred of its tokens ends an answer: with a single one, an answer would fill the window.
    """
    write_tiny_llama(folder, window=window, vocab_size=49_152, eos_token_id=list(range(1_000, 49_000, 100)))
    default = checkpoint_folder(DEFAULT_MODEL, Path(default_cache()), torch.bfloat16)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(default / name, folder / name)
    return folder


def write_byte_tokenizer(folder: Path) -> None:
    """Write a tokenizer with one token for each byte, and two control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>"])
    backend.save(str(folder / "tokenizer.json"))
    template = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}{% endfor %}"
    config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_tiny_embedder(folder: Path, family: str, method: str, *, normalizes: bool = True, **config: Any) -> Path:
    """Write a random model of a family without a head, with settings for sentence-transformers. `method`: `lasttoken`
    or `mean_tokens`. The tokenizer adds `</s>` to a text."""
    from transformers import AutoModel

    write_tiny(folder, family, **config)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    model.save_pretrained(folder)
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalizes else [])]
    modules = [
        {
            "idx": index,
            "name": str(index),
            "path": f"{index}_{kind}" if index else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for index, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 64, "pooling_mode_cls_token": False, f"pooling_mode_{method}": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 257)])
    backend.save(str(folder / "tokenizer.json"))
    return folder
