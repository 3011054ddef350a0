"""Which kernels run here."""

import logging
from pathlib import Path

import torch

from engine.errors import EngineError
from engine.kernels.base import Kernels
from engine.kernels.cpu import CpuKernels, Unavailable
from engine.kernels.reference import TorchKernels
from engine.models.checkpoint import DecoderSpec

log = logging.getLogger("myna.engine")


def select_kernels(wanted: str, spec: DecoderSpec, dtype: torch.dtype, block_size: int, cache: Path) -> Kernels:
    """The best kernels for this machine and model, or the wanted ones.

    `wanted`: auto, cpu or torch. Raises EngineError if the wanted ones cannot run here.
    """
    reference = TorchKernels(dtype, spec.kv_heads, spec.head_size, block_size)
    if wanted == "torch":
        return reference
    try:
        if dtype != torch.bfloat16:
            raise Unavailable(f"they compute in bfloat16, not {dtype}")
        return CpuKernels(
            cache,
            heads=spec.heads,
            kv_heads=spec.kv_heads,
            head_size=spec.head_size,
            block_size=block_size,
            hidden=spec.hidden,
        )
    except Unavailable as error:
        if wanted == "cpu":
            raise EngineError(f"the cpu kernels cannot run here: {error}") from error
        log.warning("using the torch kernels, because the faster ones in C cannot run here: %s", error)
        return reference
