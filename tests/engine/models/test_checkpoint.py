"""engine/models/checkpoint.py and decoder.py: safetensors folders, held against transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import Engine, EngineConfig, Sampling
from engine.errors import CheckpointError
from engine.models.checkpoint import open_weights, read_spec
from tests.checkpoints import VOCABULARY, write_tiny_llama

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 5000.0,
}


def greedy(engine: Engine, prompt: list[int], count: int) -> list[int]:
    one = Sampling(temperature=0.0, max_tokens=count, ignore_eos=True)
    return [token for update in engine.stream(prompt, one) for token in update.tokens]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"shards": True},
        {"tie_word_embeddings": True},
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1},
        {"head_dim": 16},
        {"rope_parameters": LLAMA3_ROPE},
    ],
    ids=["plain", "sharded", "tied", "every head its own", "one for all", "heads of 16", "llama3 rope"],
)
def test_greedy_text_is_transformers(tmp_path: Path, config: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM

    folder = write_tiny_llama(tmp_path, **config)
    assert len(list(folder.glob("*.safetensors"))) > 1 or not config.get("shards")
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    engine = Engine(EngineConfig(model=str(folder), dtype="float32", kv_tokens=512, step_tokens=16))
    prompt = [(7 * at) % 250 for at in range(70)]
    given = torch.tensor([prompt])
    wanted = reference.generate(
        given, attention_mask=torch.ones_like(given), max_new_tokens=30, min_new_tokens=30, do_sample=False
    )
    answer = wanted[0, len(prompt) :].tolist()
    assert greedy(engine, prompt, 30) == answer
    assert greedy(engine, prompt, 30) == answer, "and with its prefix found in the tree"
    assert len(set(answer)) > 3, "a model that says one thing proves nothing"


@pytest.mark.parametrize("kernels", ["torch", "auto"])
def test_bfloat16_checkpoints_load_in_bfloat16(tmp_path: Path, kernels: Any) -> None:
    folder = write_tiny_llama(tmp_path, dtype=torch.bfloat16)
    engine = Engine(EngineConfig(model=str(folder), kernels=kernels, kv_tokens=512))
    assert engine.info.dtype == "bfloat16"
    assert len(greedy(engine, [1, 2, 3], 5)) == 5


def test_an_unknown_architecture_is_named(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["MambaForCausalLM"]}))
    with pytest.raises(CheckpointError, match=r"MambaForCausalLM; supported: LlamaForCausalLM"):
        read_spec(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'; supported: 'silu'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "'yarn'; supported"),
    ],
)
def test_an_option_that_is_not_supported_is_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    folder = write_tiny_llama(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError, match=words):
        read_spec(folder)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        read_spec(tmp_path)
    with pytest.raises(CheckpointError, match=r"no \.safetensors"):
        open_weights(tmp_path)
    weight = open_weights(write_tiny_llama(tmp_path))
    assert weight("model.embed_tokens.weight").shape[0] == VOCABULARY
    with pytest.raises(CheckpointError, match="lacks the tensor 'nothing'"):
        weight("nothing")
