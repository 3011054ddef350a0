"""Allocation of large tensors: pages appear as they are written, in large pages where the system has them."""

import math
import mmap
from contextlib import suppress

import torch


def large_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return zeros that use no memory until they are written; torch.zeros would write all of them immediately.

    The memory has large pages where the system supports them. With small pages, reads of scattered KV blocks and of
    large weights would often wait for the translation of an address (a TLB miss).
    """
    count = math.prod(shape)
    # Private: Python maps shared memory by default, which hardly any system backs with large pages.
    memory = mmap.mmap(-1, count * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel built without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype, count=count).view(shape)
