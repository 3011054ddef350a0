"""Tests of engine/kernels/cpu/build.py: the library is built once, and a failing compiler is quoted."""

import os
import subprocess
from pathlib import Path

import pytest

from engine.kernels import select_kernels
from engine.kernels.cpu import build
from engine.kernels.cpu.build import KernelsUnavailable, cpu_features, find_compiler, load
from engine.kernels.reference import TorchKernels
from tests.engine.kernels.shapes import BF16, SIZE, layer_shape


def test_error_quotes_a_failing_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho 'fatal error: no such header' >&2\nexit 1\n")
    os.chmod(compiler, 0o755)
    monkeypatch.setenv("CC", str(compiler))
    assert isinstance(select_kernels("auto", layer_shape(), BF16, SIZE, tmp_path), TorchKernels)
    assert "fatal error: no such header" in caplog.text
    assert not list(tmp_path.glob("kernels/*")), "no partial build is left"


def test_library_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Build a library from one small file instead of the kernels, which take seconds."""
    sources, cache = tmp_path / "sources", tmp_path / "cache"
    sources.mkdir()
    (sources / "answer.c").write_text("int answer(void) { return 42; }\n")
    monkeypatch.setattr(build, "_FOLDER", sources)
    assert load(cache).answer() == 42
    monkeypatch.setattr(build, "_build", lambda *arguments: pytest.fail("it is in the cache"))
    assert load(cache).answer() == 42
    monkeypatch.undo()
    monkeypatch.setattr(build, "_FOLDER", sources)
    (sources / "answer.c").write_text("int answer(void) { return 43; }\n")
    assert load(cache).answer() == 43, "changed sources are built anew"
    assert len(list((cache / "kernels").iterdir())) == 2, "no partial build is left"


def test_library_that_cannot_be_loaded_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_build", lambda library, flags, openmp: write(library))
    with pytest.raises(KernelsUnavailable, match="cannot be loaded"):
        load(tmp_path)


def write(library: Path) -> None:
    library.parent.mkdir(parents=True)
    library.write_bytes(b"no library")


def test_compiler_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "/opt/my-cc")
    assert find_compiler() == "/opt/my-cc"
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", "")
    assert find_compiler() is None


def test_hung_compiler_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_BUILD_SECONDS", 0.1)
    with pytest.raises(KernelsUnavailable, match="sleep did not run"):
        build._run(["sleep", "30"])


def test_features_are_those_of_the_operating_system() -> None:
    flags = subprocess.run(["cat", "/proc/cpuinfo"], capture_output=True, text=True, check=True).stdout
    assert all(f" {feature} " in f"{flags} ".replace("\n", " ") for feature in cpu_features())
