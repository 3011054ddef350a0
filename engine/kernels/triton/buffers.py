"""Arrays that the host writes and the device reads, at the same place in every step."""

import numpy as np
import torch
from numpy.typing import NDArray


class Mirror:
    """An array of the host and one of the device, of one size.

    The host's is in pinned memory where there is a GPU, so that sending it does not wait for what runs there. It must
    not be written again before what was sent has arrived: two take turns.
    """

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device) -> None:
        self.tensor = torch.zeros(size, dtype=dtype, device=device)
        pinned = device.type == "cuda"
        self._hosts = [torch.zeros(size, dtype=dtype, pin_memory=pinned) for _ in range(2)]
        self._turn = 0

    def send(self, *parts: NDArray[np.generic] | list[int]) -> torch.Tensor:
        """Writes the parts one after another from the beginning, and returns the device's tensor that holds them."""
        self._turn ^= 1
        host, end = self._hosts[self._turn], 0
        array = host.numpy()
        for part in parts:
            array[end : end + len(part)] = part
            end += len(part)
        self.tensor[:end].copy_(host[:end], non_blocking=True)
        return self.tensor[:end]
