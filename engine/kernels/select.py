"""Which kernels run here."""

import logging
from pathlib import Path

import torch

from engine.errors import EngineError
from engine.kernels.base import Kernels, LayerShape
from engine.kernels.cpu import CpuKernels, Unavailable
from engine.kernels.reference import TorchKernels

log = logging.getLogger("myna.engine")


def select_kernels(
    wanted: str, shape: LayerShape, dtype: torch.dtype, block_size: int, cache: Path, *, quantize: str = "none"
) -> Kernels:
    """The best kernels for this machine and model, or the wanted ones.

    `wanted`: auto, cpu or torch. `quantize`: none or int8. Raises EngineError if the wanted ones cannot run here.
    """
    if wanted != "torch":
        try:
            return CpuKernels(cache, shape, dtype, block_size, quantize=quantize)
        except Unavailable as error:
            if wanted == "cpu" or quantize != "none":
                raise EngineError(f"the cpu kernels cannot run here: {error}") from error
            log.warning("using the torch kernels, because the faster ones in C cannot run here: %s", error)
    if quantize != "none":
        raise EngineError("the torch kernels do not quantise; leave out --kernels torch or --quantize")
    return TorchKernels(shape, dtype, block_size)
