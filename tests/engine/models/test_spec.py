"""Tests of engine/models/spec.py: configs of all families, old names, and options that are not supported."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine import Engine, EngineConfig
from engine.errors import CheckpointError
from engine.models.spec import SUPPORTED_ARCHITECTURES, read_spec
from tests.fakes.checkpoints import write_tiny

OLDER = {
    "Gemma 2": ("layer_types",),
    "Gemma 3": ("layer_types", "rope_parameters"),
    "Qwen2, sliding": ("layer_types",),
    "Mistral 7B v0.1": ("layer_types",),
}


@pytest.mark.parametrize("family", OLDER)
def test_old_config_names_are_supported(tmp_path: Path, family: str) -> None:
    folder = write_tiny(tmp_path, family)
    spec = read_spec(folder)
    config = json.loads((folder / "config.json").read_text())
    rope = config["rope_parameters"]
    for key in OLDER[family]:
        config.pop(key, None)
    if family == "Gemma 3":
        config["rope_theta"] = rope["full_attention"]["rope_theta"]
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    (folder / "config.json").write_text(json.dumps(config))
    older = read_spec(folder)
    assert [layer.window for layer in older.layers] == [layer.window for layer in spec.layers]
    assert [layer.rope and layer.rope.theta for layer in older.layers] == [
        layer.rope and layer.rope.theta for layer in spec.layers
    ]
    assert len({layer.window for layer in spec.layers}) == (1 if "Mistral" in family else 2)


def test_unknown_architecture_is_named(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["MambaForCausalLM"]}))
    with pytest.raises(CheckpointError, match="MambaForCausalLM; supported: LlamaForCausalLM") as raised:
        read_spec(folder)
    assert all(name in str(raised.value) for name in SUPPORTED_ARCHITECTURES)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_act": "relu"}, "hidden_act = 'relu'; supported: silu"),
        ({"rope_parameters": {"rope_type": "mrope"}}, "'mrope' is not supported; supported: default, linear"),
        ({"num_attention_heads": None}, "num_attention_heads"),
        ({"vocab_size": 100}, "config.json implies 100"),
    ],
)
def test_unsupported_option_is_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    folder = write_tiny(tmp_path)
    config = {**json.loads((folder / "config.json").read_text()), **change}
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    with pytest.raises(CheckpointError, match=words):
        Engine(EngineConfig(model=str(folder), kv_tokens=512))
