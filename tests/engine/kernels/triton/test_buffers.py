"""Tests of engine/kernels/triton/buffers.py."""

import numpy as np
import torch

from engine.kernels.triton.buffers import Mirror


def test_parts_are_sent_one_after_another_to_one_address() -> None:
    mirror = Mirror(8, torch.int32, torch.device("cpu"))
    first = mirror.send(np.array([1, 2], dtype=np.int32), [3], np.array([], dtype=np.int32))
    assert first.tolist() == [1, 2, 3]
    address = first.data_ptr()
    assert mirror.send([9]).tolist() == [9]
    assert mirror.send([7, 8]).data_ptr() == address == mirror.tensor.data_ptr(), "a CUDA graph reads this address"


def test_array_of_a_copy_in_flight_is_not_overwritten() -> None:
    mirror = Mirror(2, torch.int64, torch.device("cpu"))
    mirror.send([1, 1])
    in_flight = mirror._hosts[mirror._turn]
    mirror.send([2, 2])
    assert in_flight.tolist() == [1, 1]
