"""Tests of engine/models/gguf_metadata.py."""

from pathlib import Path

import gguf
import pytest

from engine.errors import CheckpointError
from engine.models.gguf_metadata import Metadata


def test_values_by_key(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_block_count(3)
    writer.add_token_list(["a", "ü"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    fields = Metadata(gguf.GGUFReader(tmp_path / "a.gguf"), tmp_path / "a.gguf")
    assert fields.require("llama.block_count") == 3
    assert fields.get("tokenizer.ggml.tokens") == ["a", "ü"]
    assert fields.get("llama.context_length", 7) == 7
    with pytest.raises(CheckpointError, match=r"a\.gguf has no 'llama.context_length'"):
        fields.require("llama.context_length")
