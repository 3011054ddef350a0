"""Tests of engine/device.py and engine/gpus.py: choice of the device, and errors for models that do not fit."""

from pathlib import Path

import pytest
import torch

from engine.device import DeviceMemory, check_weights, choose_device, kv_pool_tokens
from engine.errors import EngineError
from engine.gpus import torch_has_cuda, visible_gpus

GIB = 2**30


def room(free: float) -> DeviceMemory:
    return DeviceMemory("NVIDIA H100", int(free * GIB), 80 * GIB)


def test_weights_that_fit_are_accepted() -> None:
    check_weights(room(16), 16 * GIB)


def test_error_names_the_missing_memory() -> None:
    with pytest.raises(EngineError, match=r"need 30\.0 GiB, and 12\.5 of 80\.0 GiB are free .* 17\.5 GiB are missing"):
        check_weights(room(12.5), 30 * GIB)


def test_pool_uses_free_memory_in_whole_blocks() -> None:
    tokens = kv_pool_tokens(room(10), 0, 131_072, 16)
    assert tokens % 16 == 0
    assert 0.89 * 10 * GIB < tokens * 131_072 <= 0.9 * 10 * GIB
    assert kv_pool_tokens(room(10), 0, 131_072, 16, peers=2) == pytest.approx(tokens / 2, abs=16)
    assert kv_pool_tokens(room(10), 1000, 131_072, 16) == 1000


def test_error_names_a_pool_size_that_fits() -> None:
    with pytest.raises(EngineError, match=r"needs 24\.4 GiB") as caught:
        kv_pool_tokens(room(10), 200_000, 131_072, 16)
    maximum = int(str(caught.value).rsplit(" ", 1)[1])
    assert "Lower --kv-tokens" in str(caught.value)
    assert kv_pool_tokens(room(10), maximum, 131_072, 16) == maximum


def test_pool_without_a_block_is_rejected() -> None:
    with pytest.raises(EngineError, match=r"no memory is left for the KV cache: 0\.00 of 80\.0 GiB"):
        kv_pool_tokens(room(0.001), 0, 131_072, 16)


def test_pool_stays_within_32_bit_offsets() -> None:
    """Check the bound: the kernels count the elements of a layer's keys in 32 bits."""
    assert kv_pool_tokens(room(79), 0, 64, 16, key_elements=1024) * 1024 < 2**31
    with pytest.raises(EngineError, match="can address 2097120 tokens"):
        kv_pool_tokens(room(79), 3_000_000, 64, 16, key_elements=1024)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_missing_gpu_is_rejected(name: str) -> None:
    with pytest.raises(EngineError, match=f"--device {name} is not available: .*--device cpu"):
        choose_device(name)


def test_cpu_is_always_available() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    ("named", "seen"),
    [(None, 2), ("", 0), ("0", 1), ("1,0", 2), ("0,5,1", 1), ("-1", 0), ("GPU-8932f937,GPU-12", 2), ("0,1,1", 2)],
)
def test_gpus_are_counted_without_torch(tmp_path: Path, named: str | None, seen: int) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert visible_gpus({} if named is None else {"CUDA_VISIBLE_DEVICES": named}, tmp_path) == seen


@pytest.mark.parametrize(
    ("version", "has"),
    [
        ("__version__ = '2.13.0+cpu'\ndebug = False\ncuda: Optional[str] = None\nhip: Optional[str] = None\n", False),
        ("__version__ = '2.13.0'\ncuda: Optional[str] = '12.8'\nhip: Optional[str] = None\n", True),
        ("cuda = None\n", False),
    ],
)
def test_torch_without_cuda_uses_no_gpu(version: str, has: bool) -> None:
    """Otherwise a machine with GPUs and a CPU-only torch would not start, although it can serve on the CPU."""
    assert torch_has_cuda(version) == has


def test_installed_torch_agrees() -> None:
    assert torch_has_cuda() == (torch.version.cuda is not None)


def test_machine_without_device_files_has_no_gpus(tmp_path: Path) -> None:
    assert visible_gpus({}, tmp_path / "none") == 0
