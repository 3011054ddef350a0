"""Tests of engine/kernels/base.py: copies of blocks in the KV pool."""

import pytest
import torch

from engine.kernels.base import KVTensors


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float8_e4m3fn])
def test_blocks_are_stored_before_others_are_loaded(dtype: torch.dtype) -> None:
    kv = KVTensors.zeros(3, (6, 2, 16, 8), dtype)
    for layer in (*kv.keys, *kv.values):
        layer[:] = torch.randn(layer.shape).to(dtype)
    before = [layer.float().clone() for layer in (*kv.keys, *kv.values)]
    slots = kv.slots(4)
    kv.swap(slots, [(1, 3), (2, 0)], [])
    kv.swap(slots, [(5, 1)], [(3, 5), (0, 4)])
    kv.swap(slots, [], [(1, 2)])
    for was, layer in zip(before, (*kv.keys, *kv.values), strict=True):
        for block, now in {0: 0, 1: 1, 3: 3, 5: 1, 4: 2, 2: 5}.items():
            assert torch.equal(layer[block].float(), was[now])


def test_copies_see_the_blocks_as_they_were() -> None:
    kv = KVTensors.zeros(2, (4, 1, 4, 8), torch.float32)
    for index, layer in enumerate((*kv.keys, *kv.values)):
        layer[1], layer[2] = 10.0 + index, 20.0 + index
    kv.copy_blocks([(1, 2), (2, 3)])
    for index, layer in enumerate((*kv.keys, *kv.values)):
        assert [float(block.mean()) for block in layer] == [0.0, 10.0 + index, 10.0 + index, 20.0 + index]
