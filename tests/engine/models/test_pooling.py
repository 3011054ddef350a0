"""engine/models/pooling.py: settings for sentence-transformers."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.errors import CheckpointError
from engine.models.pooling import PoolingSpec, read_pooling
from engine.models.spec import read_spec
from tests.fakes.checkpoints import write_tiny_embedder


def write(folder: Path, modules: Any, pooling: Any = None) -> Path:
    (folder / "modules.json").write_text(json.dumps(modules))
    if pooling is not None:
        (folder / "1_Pooling").mkdir(exist_ok=True)
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def module(kind: str, path: str = "") -> dict[str, str]:
    return {"type": f"sentence_transformers.models.{kind}", "path": path}


MODULES = [module("Transformer"), module("Pooling", "1_Pooling")]


@pytest.mark.parametrize(
    ("modules", "pooling", "expected"),
    [
        (MODULES, {"pooling_mode_lasttoken": True}, PoolingSpec("last", False)),
        (MODULES, {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, PoolingSpec("mean", False)),
        ([*MODULES, module("Normalize", "2_Normalize")], {"pooling_mode": "lasttoken"}, PoolingSpec("last", True)),
        ([module("Transformer")], None, None),
        ([{**MODULES[0]}, {**MODULES[1], "type": "a.b.Pooling"}], {"pooling_mode": "mean"}, PoolingSpec("mean", False)),
    ],
)
def test_settings(tmp_path: Path, modules: Any, pooling: Any, expected: Any) -> None:
    assert read_pooling(tmp_path) is None
    assert read_pooling(write(tmp_path, modules, pooling)) == expected


@pytest.mark.parametrize(
    ("modules", "pooling"),
    [
        (MODULES, None),
        (MODULES, {}),
        (MODULES, {"pooling_mode_cls_token": True}),
        (MODULES, {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}),
        (MODULES, {"pooling_mode": "weightedmean"}),
        ([*MODULES, module("Dense", "2_Dense")], {"pooling_mode": "mean"}),
        ([module("Transformer", "0_Transformer"), MODULES[1]], {"pooling_mode": "mean"}),
        ([*MODULES, MODULES[1]], {"pooling_mode": "mean"}),
        ({"a": 1}, None),
        ([{"type": "x"}], None),
        ([5], None),
    ],
)
def test_unsupported_settings_are_refused(tmp_path: Path, modules: Any, pooling: Any) -> None:
    with pytest.raises(CheckpointError):
        read_pooling(write(tmp_path, modules, pooling))


def test_attention_must_be_causal(tmp_path: Path) -> None:
    folder = write_tiny_embedder(tmp_path, "Qwen3", "lasttoken")
    assert read_spec(folder).pooling == PoolingSpec("last", True)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["Qwen3Model"]
    (folder / "config.json").write_text(json.dumps({**config, "is_causal": False}))
    with pytest.raises(CheckpointError, match="later tokens"):
        read_spec(folder)
