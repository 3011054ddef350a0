"""Tests of engine/models/gguf*.py: files written with the gguf package, compared with transformers and
sentencepiece."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize

from engine import Engine, EngineConfig
from engine.errors import CheckpointError
from engine.models.fetch import checkpoint_folder
from tests.engine.models.test_families import PROMPT, engine_logits, reference
from tests.fakes.checkpoints import write_tiny


def write(path: Path, architecture: str = "llama", tokenizer: str = "gpt2") -> Path:
    """Write a GGUF file with one layer, without tensors that the test does not need."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(16)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(4)
    writer.add_tokenizer_model(tokenizer)
    writer.add_token_list(["a", "b", "ab", "<|end|>"])
    writer.add_token_types([1, 1, 1, 3])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(3)
    writer.add_tensor("token_embd.weight", np.arange(32, dtype=np.float32).reshape(4, 8))
    writer.add_tensor("blk.0.attn_q.weight", np.arange(64, dtype=np.float32).reshape(8, 8))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf_file_is_converted_once(tmp_path: Path) -> None:
    file = write(tmp_path / "small.gguf")
    folder = checkpoint_folder(str(file), tmp_path, torch.float32)
    created = (folder / "model.safetensors").stat().st_mtime_ns
    assert checkpoint_folder(str(file), tmp_path, torch.float32) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == created
    assert checkpoint_folder(str(file), tmp_path, torch.bfloat16) != folder
    assert [path.name for path in (tmp_path / "converted").iterdir() if path.name.startswith(".")] == []
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["rms_norm_eps"] == 1e-5
    assert config["tie_word_embeddings"] is True, "the file has no output.weight"


def test_rotary_halves_are_deinterleaved(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = checkpoint_folder(str(write(tmp_path / "small.gguf")), tmp_path, torch.float32)
    stored = load_file(folder / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    # llama.cpp interleaves the halves of each head: rows 0, 1, 2, 3 of a head of four were rows 0, 2, 1, 3
    assert (stored[:, 0] / 8).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"architecture": "mamba"}, "architecture 'mamba'"), ({"tokenizer": "t5"}, "tokenizer of kind 't5'")],
)
def test_unsupported_gguf_is_named(tmp_path: Path, arguments: dict[str, str], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        checkpoint_folder(str(write(tmp_path / "odd.gguf", **arguments)), tmp_path, torch.float32)


def test_invalid_gguf_file_is_rejected(tmp_path: Path) -> None:
    file = tmp_path / "wrong.gguf"
    file.write_bytes(b"this is not a model" * 10)
    with pytest.raises(CheckpointError, match="cannot be read as GGUF"):
        checkpoint_folder(str(file), tmp_path, torch.float32)


ARCHITECTURES = {
    "Llama 2": ("llama", {}),
    "Llama with biases": ("llama", {"mlp_bias": False}),
    "Mistral": ("llama", {}),
    "SmolLM3": ("smollm3", {"num_hidden_layers": 5, "no_rope_layers": [1, 1, 1, 0, 1]}),
    "Qwen2": ("qwen2", {}),
    "Qwen2.5, yarn": ("qwen2", {}),
    "Qwen3": ("qwen3", {}),
    "Gemma 2": ("gemma2", {"query_pre_attn_scalar": 32, "tie_word_embeddings": True}),
    "Gemma 3": ("gemma3", {"query_pre_attn_scalar": 32, "tie_word_embeddings": True}),
    "Phi-3": ("phi3", {}),
    "Phi-3, longrope": ("phi3", {}),
    "Llama 3": ("llama", {}),
}
"""Families, the names llama.cpp has for them, and what its files cannot say otherwise."""


def interleaved(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Return queries or keys in llama.cpp's own rotary order, as its converter writes them."""
    half = len(weight) // heads // 2
    return weight.reshape(heads, 2, half, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def blocks_of(kind: gguf.GGMLQuantizationType, shape: tuple[int, ...], random: np.random.Generator) -> Any:
    """Return random data of a quantization that the package reads but does not write; its scales are small numbers."""
    size, stored = gguf.GGML_QUANT_SIZES[kind]
    data = random.integers(0, 256, (shape[0], shape[1] // size, stored), dtype=np.uint8)
    scale = np.frombuffer(np.float16(2e-4).tobytes(), dtype=np.uint8)
    places = (0, 2) if kind == gguf.GGMLQuantizationType.Q4_K else (stored - 2,)
    for place in places:
        data[..., place : place + 2] = scale
    return data.reshape(shape[0], -1)


def write_family(folder: Path, name: str, kind: gguf.GGMLQuantizationType) -> dict[str, torch.Tensor]:
    """Write folder/model.gguf from the checkpoint in `folder`, as llama.cpp's converter would, with its matrices in
    `kind`.

    Returns the weights that such a file holds, by their names in the checkpoint.
    """
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    layers, heads, kv_heads = (
        config[key] for key in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    )
    writer = gguf.GGUFWriter(folder / "model.gguf", name)
    writer.add_block_count(layers)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    head_size = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_key_length(head_size)
    writer.add_rope_dimension_count(head_size)
    rope = config["rope_parameters"]
    rope = rope.get("full_attention", rope)
    writer.add_rope_freq_base(rope["rope_theta"])
    if config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])
    if config.get("attn_logit_softcapping"):
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope["rope_type"] == "longrope":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        for which in ("long", "short"):
            writer.add_tensor(f"rope_factors_{which}.weight", np.array(rope[f"{which}_factor"], dtype=np.float32))
    if rope["rope_type"] == "llama3":
        plain = 1 / rope["rope_theta"] ** (np.arange(0, head_size, 2) / head_size)
        from transformers import LlamaConfig
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](LlamaConfig(**config), "cpu")
        writer.add_tensor("rope_freqs.weight", (plain / scaled.numpy()).astype(np.float32))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["a", "b", "ab", *(f"t{token}" for token in range(3, config["vocab_size"]))])
    writer.add_token_types([1] * config["vocab_size"])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(config["vocab_size"] - 1)

    arch = next(arch for arch, text in gguf.MODEL_ARCH_NAMES.items() if text == name)
    names = gguf.get_tensor_name_map(arch, layers)
    random = np.random.default_rng(0)
    held = {}
    for own, tensor in tensors.items():
        weight = tensor.float().numpy()
        if name.startswith("gemma") and "norm" in own:
            weight = weight + 1
        turned = name in ("llama", "smollm3") and ("q_proj" in own or "k_proj" in own)
        count = heads if "q_proj" in own else kv_heads
        if turned:
            weight = interleaved(weight, count)
        if own == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        target = names.get_name(own, try_suffixes=(".weight", ".bias"))
        assert target is not None, own
        if weight.ndim == 1:
            writer.add_tensor(target, weight)
            stored = weight
        elif kind in (gguf.GGMLQuantizationType.Q4_K, gguf.GGMLQuantizationType.Q6_K):
            data = blocks_of(kind, weight.shape, random)
            stored = dequantize(data, kind)
            writer.add_tensor(target, data, raw_dtype=kind)
        else:
            data = quantize(weight, kind)
            stored = dequantize(data, kind)
            writer.add_tensor(target, data, raw_dtype=kind)
        if turned:  # back again
            half = len(stored) // count // 2
            stored = stored.reshape(count, half, 2, *stored.shape[1:]).swapaxes(1, 2).reshape(stored.shape)
        held[own] = torch.from_numpy(np.array(stored, dtype=np.float32)) - (
            1.0 if name.startswith("gemma") and "norm" in own else 0.0
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


def check(folder: Path, cache: Path, held: dict[str, torch.Tensor]) -> None:
    """Check that the converted file, run by the engine, equals transformers' model with the same weights."""
    model = reference(folder)
    model.load_state_dict(held, strict=False)
    with torch.no_grad():
        expected = model(torch.tensor([PROMPT])).logits[0]
    config = EngineConfig(
        model=str(folder / "model.gguf"), cache=str(cache), dtype="float32", kv_tokens=512, prefix_sharing=False
    )
    got = engine_logits(Engine(config), PROMPT)
    assert torch.allclose(got, expected, atol=1e-3 * float(expected.abs().max())), float((got - expected).abs().max())


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_every_gguf_family_equals_transformers(tmp_path: Path, family: str) -> None:
    name, config = ARCHITECTURES[family]
    folder = write_tiny(tmp_path / "model", family, **config)
    check(folder, tmp_path, write_family(folder, name, gguf.GGMLQuantizationType.F16))


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K"])
def test_every_gguf_quantization(tmp_path: Path, kind: str) -> None:
    folder = write_tiny(tmp_path / "model", "Qwen3", hidden_size=256, intermediate_size=256, num_attention_heads=8)
    check(folder, tmp_path, write_family(folder, "qwen3", gguf.GGMLQuantizationType[kind]))
