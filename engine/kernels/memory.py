"""Large tensors: pages that come as they are written, and big ones where the system gives them."""

import math
import mmap
from contextlib import suppress

import torch


def large_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros that take no memory until written; torch.zeros would write them all at once.

    Large pages spare the address lookups that scattered KV blocks and long weights otherwise wait for.
    """
    count = math.prod(shape)
    # private: shared memory, which Python maps unasked, gets large pages from hardly any system
    memory = mmap.mmap(-1, count * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel built without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype, count=count).view(shape)
