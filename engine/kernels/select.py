"""Which kernels run here."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.errors import EngineError
from engine.kernels.base import FP8, Kernels, LayerShape
from engine.kernels.cpu import CpuKernels, Unavailable
from engine.kernels.reference import TorchKernels

log = logging.getLogger("myna.engine")


@dataclass(frozen=True)
class Limits:
    """The most that a step has: rows, sequences, and blocks of a sequence."""

    rows: int
    sequences: int
    width: int


_CPU = torch.device("cpu")


def select_kernels(
    wanted: str,
    shape: LayerShape,
    dtype: torch.dtype,
    block_size: int,
    cache: Path,
    *,
    quantize: str = "none",
    kv_dtype: str = "auto",
    device: torch.device = _CPU,
    limits: Limits | None = None,
) -> Kernels:
    """The best kernels for this device and model, or the wanted ones.

    `wanted`: auto, cpu, torch or triton. `quantize`: none or int8. `kv_dtype`: auto or fp8. `limits`:
    needed for Triton's. Raises EngineError if the wanted ones cannot run here.
    """
    kept = FP8 if kv_dtype == "fp8" else dtype
    if wanted == "triton" or (wanted == "auto" and device.type == "cuda"):
        try:
            from engine.kernels.triton.kernels import TritonKernels  # Triton takes a while to load
        except ImportError as error:
            raise EngineError(f"the kernels for GPUs need Triton, which is not here: {error}") from error
        if quantize != "none":
            raise EngineError("the Triton kernels do not quantise; leave out --quantize")
        assert limits is not None
        return TritonKernels(
            shape,
            dtype,
            block_size,
            device,
            rows=limits.rows,
            sequences=limits.sequences,
            width=limits.width,
            kv_dtype=kept,
        )
    if device.type == "cuda":
        raise EngineError(f"the {wanted} kernels run on the CPU; leave out --kernels, or take --device cpu")
    if kept != dtype and wanted != "torch":
        raise EngineError("the cpu kernels keep no KV in 8 bits; leave out --kv-dtype, or take --kernels torch")
    if wanted != "torch":
        try:
            return CpuKernels(cache, shape, dtype, block_size, quantize=quantize)
        except Unavailable as error:
            if wanted == "cpu" or quantize != "none":
                raise EngineError(f"the cpu kernels cannot run here: {error}") from error
            log.warning("using the torch kernels, because the faster ones in C cannot run here: %s", error)
    if quantize != "none":
        raise EngineError("the torch kernels do not quantise; leave out --kernels torch or --quantize")
    return TorchKernels(shape, dtype, block_size, kept)
