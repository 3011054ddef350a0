"""Tests of engine/device.py and engine/gpus.py: choice of the device, and errors for models that do not fit."""

import pytest
import torch

from engine.device import DeviceMemory, check_weights, choose_device, kv_pool_tokens
from engine.errors import EngineError

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
