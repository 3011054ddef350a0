"""Tests of engine/kernels/select.py: the fastest kernels that run here, or an error that says what to do."""

from pathlib import Path

import pytest
import torch

from engine.config import default_cache
from engine.errors import EngineError
from engine.kernels import LayerShape, select_kernels
from engine.kernels.reference import TorchKernels
from tests.engine.kernels.shapes import BF16, F32, SIZE, layer_shape


def test_without_compiler_the_torch_kernels_run_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CC", str(tmp_path / "no-such-compiler"))
    kernels = select_kernels("auto", layer_shape(), BF16, SIZE, tmp_path)
    assert isinstance(kernels, TorchKernels)
    assert "no-such-compiler did not run" in caplog.text
    with pytest.raises(EngineError, match="cannot run here"):
        select_kernels("cpu", layer_shape(), BF16, SIZE, tmp_path)
    with pytest.raises(EngineError, match="cannot run here"):
        select_kernels("auto", layer_shape(), BF16, SIZE, tmp_path, quantize="int8")
    with pytest.raises(EngineError, match="do not support quantization"):
        select_kernels("torch", layer_shape(), BF16, SIZE, tmp_path, quantize="int8")


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (layer_shape(head_size=48), "heads of 32, 64"),
        (layer_shape(hidden=72), "multiples of 16"),
        (layer_shape(rotary_size=48), "of 32 where heads are rotated"),
    ],
)
def test_unsupported_shapes_run_on_torch(
    shape: LayerShape, words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert isinstance(select_kernels("auto", shape, BF16, SIZE, tmp_path), TorchKernels)
    assert words in caplog.text


def test_float32_runs_on_torch(tmp_path: Path) -> None:
    assert isinstance(select_kernels("auto", layer_shape(), F32, SIZE, tmp_path), TorchKernels)


def test_c_kernels_reject_fp8_kv() -> None:
    with pytest.raises(EngineError, match="8-bit KV cache"):
        select_kernels("auto", layer_shape(), BF16, SIZE, Path(default_cache()), kv_dtype="fp8")


def test_cpu_kernels_are_rejected_on_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="run on the CPU"):
        select_kernels("torch", layer_shape(), BF16, SIZE, tmp_path, device=torch.device("cuda"))


def test_triton_does_not_quantize(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="Triton kernels do not support quantization"):
        select_kernels("triton", layer_shape(), BF16, SIZE, tmp_path, quantize="int8")
