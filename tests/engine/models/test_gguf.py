"""engine/models/gguf.py; that the converted model speaks as it should is tested in tests/engine/test_loop.py"""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from engine.errors import CheckpointError
from engine.models.fetch import checkpoint_folder


def write(path: Path, architecture: str = "llama", tokenizer: str = "gpt2") -> Path:
    """A GGUF file with one layer, cut short where the test needs no more."""
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


def test_a_file_becomes_a_checkpoint_folder_once(tmp_path: Path) -> None:
    file = write(tmp_path / "small.gguf")
    folder = checkpoint_folder(str(file), tmp_path, torch.float32)
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert checkpoint_folder(str(file), tmp_path, torch.float32) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    assert checkpoint_folder(str(file), tmp_path, torch.bfloat16) != folder
    assert [path.name for path in (tmp_path / "converted").iterdir() if path.name.startswith(".")] == []
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["rms_norm_eps"] == 1e-5
    assert config["tie_word_embeddings"] is True, "there is no output.weight"


def test_rotary_halves_come_back_in_order(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = checkpoint_folder(str(write(tmp_path / "small.gguf")), tmp_path, torch.float32)
    stored = load_file(folder / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    # llama.cpp interleaves the halves of each head: rows 0, 1, 2, 3 of a head of four were rows 0, 2, 1, 3
    assert (stored[:, 0] / 8).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"architecture": "mamba"}, "architecture 'mamba'"), ({"tokenizer": "t5"}, "tokenizer of kind 't5'")],
)
def test_what_is_not_supported_is_named(tmp_path: Path, arguments: dict[str, str], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        checkpoint_folder(str(write(tmp_path / "odd.gguf", **arguments)), tmp_path, torch.float32)


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "wrong.gguf"
    file.write_bytes(b"this is not a model" * 10)
    with pytest.raises(CheckpointError, match="cannot be read as GGUF"):
        checkpoint_folder(str(file), tmp_path, torch.float32)
