"""GGUF files, converted once into a checkpoint folder (config, safetensors, tokenizer) in the cache.

Reading 100,000 metadata strings and dequantising takes seconds, and one folder format leaves one loader.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.quants import dequantize
from safetensors.torch import save_file
from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tqdm import tqdm

from engine.errors import CheckpointError

_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_TENSORS = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
_CONTROL, _USER_DEFINED = 3, 4  # token types of the GGUF specification


def convert(path: Path, folder: Path, dtype: torch.dtype) -> None:
    """Writes the GGUF file as the checkpoint folder `folder`, which appears at once and whole.

    Weights are dequantised to float32 and rounded to `dtype`. Raises CheckpointError for an architecture,
    tokenizer or tensor that is not supported.
    """
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as GGUF: {error}") from error
    fields = _Fields(reader, path)
    config = _config(fields)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".convert-", ignore_cleanup_errors=True) as directory:
        scratch = Path(directory) / folder.name
        scratch.mkdir()
        tensors = {}
        for tensor in tqdm(reader.tensors, desc=f"converting {path.name}", unit="tensor", disable=None):
            target = _target_name(tensor.name, path)
            weight = torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type)))
            if target.endswith(("q_proj.weight", "k_proj.weight")):
                heads = config["num_attention_heads" if "q_proj" in target else "num_key_value_heads"]
                weight = _unpermute(weight, heads)
            tensors[target] = weight.to(dtype).contiguous()
        config["tie_word_embeddings"] = "lm_head.weight" not in tensors
        save_file(tensors, scratch / "model.safetensors", metadata={"format": "pt"})
        (scratch / "config.json").write_text(json.dumps(config, indent=1))
        (scratch / "generation_config.json").write_text(json.dumps({"eos_token_id": config["eos_token_id"]}))
        _write_tokenizer(fields, scratch)
        _move_into_place(scratch, folder)


def _move_into_place(finished: Path, target: Path) -> None:
    """Whoever comes first wins."""
    try:
        finished.rename(target)
    except OSError:
        if not target.is_dir():
            raise


class _Fields:
    """The file's metadata by key."""

    def __init__(self, reader: gguf.GGUFReader, path: Path) -> None:
        self._fields = reader.fields
        self.path = path

    def get(self, key: str, default: Any = None) -> Any:
        field = self._fields.get(key)
        return default if field is None else field.contents()

    def need(self, key: str) -> Any:
        value = self.get(key)
        if value is None:
            raise CheckpointError(f"{self.path} has no {key!r} in its metadata")
        return value


def _config(fields: _Fields) -> dict[str, Any]:
    architecture = fields.need("general.architecture")
    if architecture != "llama":
        raise CheckpointError(f"{fields.path} is of architecture {architecture!r}; GGUF is supported for: llama")
    if fields.get("llama.rope.scaling.type", "none") != "none":
        raise CheckpointError(f"{fields.path} scales its rotary positions, which is not supported from GGUF")
    heads = fields.need("llama.attention.head_count")
    hidden = fields.need("llama.embedding_length")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": fields.need("llama.feed_forward_length"),
        "num_hidden_layers": fields.need("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.get("llama.attention.head_count_kv", heads),
        "head_dim": fields.get("llama.rope.dimension_count", hidden // heads),
        "hidden_act": "silu",
        # stored as a float32; the nearest short decimal is what was meant
        "rms_norm_eps": float(f"{fields.need('llama.attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_theta": float(fields.get("llama.rope.freq_base", 10000.0)),
        "max_position_embeddings": fields.need("llama.context_length"),
        "vocab_size": len(fields.need("tokenizer.ggml.tokens")),
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": fields.get("tokenizer.ggml.eos_token_id"),
    }


def _target_name(name: str, path: Path) -> str:
    if name in _TENSORS:
        return _TENSORS[name]
    head, _, rest = name.partition(".")
    layer, _, kind = rest.partition(".")
    if head == "blk" and kind in _LAYER_TENSORS:
        return f"model.layers.{layer}.{_LAYER_TENSORS[kind]}"
    raise CheckpointError(f"{path} holds a tensor {name!r} that the llama architecture does not have")


def _unpermute(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rotary halves back in the order of the original checkpoint; llama.cpp stores them interleaved."""
    out, inner = weight.shape
    return weight.reshape(heads, out // heads // 2, 2, inner).transpose(1, 2).reshape(out, inner)


_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


# How a text is cut before merging, by `tokenizer.ggml.pre`.
_PRE_TOKENIZERS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "llama-bpe": lambda: _split(rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_REST}"),
    "qwen2": lambda: _split(rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_REST}"),
}


def _write_tokenizer(fields: _Fields, folder: Path) -> None:
    kind, pre = fields.need("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2" or pre not in _PRE_TOKENIZERS:
        raise CheckpointError(
            f"{fields.path} has a tokenizer of kind {kind!r} / {pre!r}; from GGUF, 'gpt2' is supported with "
            f"{', '.join(_PRE_TOKENIZERS)}"
        )
    tokens: list[str] = fields.need("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in fields.need("tokenizer.ggml.merges")]
    backend = Backend(
        models.BPE(
            vocab={text: token for token, text in enumerate(tokens)},
            merges=merges,
            ignore_merges=pre == "llama-bpe",
        )
    )
    backend.pre_tokenizer = _PRE_TOKENIZERS[pre]()
    backend.decoder = decoders.ByteLevel()
    content = json.loads(backend.to_str())
    types: list[int] = fields.get("tokenizer.ggml.token_type", [])
    content["added_tokens"] = [
        {
            "id": token,
            "content": tokens[token],
            "special": type_ == _CONTROL,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
        for token, type_ in enumerate(types)
        if type_ in (_CONTROL, _USER_DEFINED)
    ]
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")

    def text(key: str) -> str | None:
        token = fields.get(key)
        return None if token is None else tokens[token]

    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": text("tokenizer.ggml.bos_token_id"),
        "eos_token": text("tokenizer.ggml.eos_token_id"),
        "add_bos_token": fields.get("tokenizer.ggml.add_bos_token", False),
        "chat_template": fields.get("tokenizer.chat_template"),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
