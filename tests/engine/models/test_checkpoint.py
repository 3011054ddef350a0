"""Tests of engine/models/checkpoint.py. test_families.py tests the values of the weights."""

from pathlib import Path

import pytest

from engine.errors import CheckpointError
from engine.models.checkpoint import open_weights
from engine.models.spec import read_spec
from tests.fakes.checkpoints import VOCABULARY, write_tiny


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        read_spec(tmp_path)
    with pytest.raises(CheckpointError, match=r"no \.safetensors"):
        open_weights(tmp_path)
    weight = open_weights(write_tiny(tmp_path))
    assert weight("model.embed_tokens.weight").shape[0] == VOCABULARY
    with pytest.raises(CheckpointError, match="lacks the tensor 'nothing'"):
        weight("nothing")


def test_damaged_file_is_named(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(CheckpointError, match=r"cannot be read"):
        open_weights(folder)
