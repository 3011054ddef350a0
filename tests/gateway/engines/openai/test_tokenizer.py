"""gateway/engines/openai/tokenizer.py: tokenizers of folders and of hub ids."""

from pathlib import Path

import pytest

from engine.errors import CheckpointError
from gateway.engines.openai.tokenizer import load_tokenizer
from tests.fakes.checkpoints import write_byte_tokenizer


def test_a_folder_without_weights_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_byte_tokenizer(tmp_path)
    assert len(load_tokenizer(str(tmp_path)).encode("four")) == 4
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert len(load_tokenizer(f"~/{tmp_path.name}").encode("four")) == 4


@pytest.mark.parametrize("source", ["name", "a/b/c", "./no/folder", "/no/folder", "~/folder"])
def test_a_source_that_is_neither_a_folder_nor_a_hub_id_is_refused(source: str) -> None:
    with pytest.raises(CheckpointError, match="a hub id has the form owner/name"):
        load_tokenizer(source)


def test_a_tokenizer_that_cannot_be_fetched_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="the tokenizer of nobody/none could not be fetched"):
        load_tokenizer("nobody/none")


def test_a_folder_without_a_tokenizer_is_reported(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        load_tokenizer(str(tmp_path))
