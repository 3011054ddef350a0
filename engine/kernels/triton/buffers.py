"""Arrays that the host writes and the device reads, at the same address in every step."""

import numpy as np
import torch
from numpy.typing import NDArray


class Mirror:
    """An array in host memory and its copy on the device.

    With a GPU the host's array is pinned, so that a copy does not wait for running kernels. It must not be overwritten
    before the copy is complete: two arrays alternate.
    """

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device) -> None:
        self.tensor = torch.zeros(size, dtype=dtype, device=device)
        pinned = device.type == "cuda"
        self._hosts = [torch.zeros(size, dtype=dtype, pin_memory=pinned) for _ in range(2)]
        self._turn = 0

    def send(self, *parts: NDArray[np.generic] | list[int]) -> torch.Tensor:
        """Write the parts one after another from the beginning, and return the device's tensor that holds them."""
        self._turn ^= 1
        host, end = self._hosts[self._turn], 0
        array = host.numpy()
        for part in parts:
            array[end : end + len(part)] = part
            end += len(part)
        self.tensor[:end].copy_(host[:end], non_blocking=True)
        return self.tensor[:end]
