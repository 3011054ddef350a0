"""Selection of the kernels."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.errors import EngineError
from engine.kernels.base import FP8, Kernels, LayerShape
from engine.kernels.cpu import CpuKernels, KernelsUnavailable
from engine.kernels.reference import TorchKernels

log = logging.getLogger("myna.engine")


@dataclass(frozen=True)
class Limits:
    """Maximum sizes of a step: rows, sequences, and blocks of a sequence."""

    rows: int
    sequences: int
    width: int


_CPU = torch.device("cpu")


def select_kernels(
    requested: str,
    shape: LayerShape,
    dtype: torch.dtype,
    block_size: int,
    cache: Path,
    *,
    quantize: str = "none",
    tile_threads: int = 0,
    kv_dtype: str = "auto",
    device: torch.device = _CPU,
    limits: Limits | None = None,
) -> Kernels:
    """Return the requested kernels, or the fastest ones for this device and model.

    `requested`: auto, cpu, torch or triton. `quantize`: none or int8. `tile_threads`: see `EngineConfig`. `kv_dtype`:
    auto or fp8. `limits`: required for Triton.

    Raises EngineError if the requested ones cannot run here.
    """
    pool_dtype = FP8 if kv_dtype == "fp8" else dtype
    if requested == "triton" or (requested == "auto" and device.type == "cuda"):
        try:
            from engine.kernels.triton.kernels import TritonKernels  # Triton takes a while to load
        except ImportError as error:
            raise EngineError(f"the GPU kernels need Triton, which cannot be imported: {error}") from error
        if quantize != "none":
            raise EngineError("the Triton kernels do not support quantization; leave out --quantize")
        assert limits is not None
        return TritonKernels(
            shape,
            dtype,
            block_size,
            device,
            rows=limits.rows,
            sequences=limits.sequences,
            width=limits.width,
            kv_dtype=pool_dtype,
        )
    if device.type == "cuda":
        raise EngineError(f"the {requested} kernels run on the CPU; leave out --kernels, or use --device cpu")
    if pool_dtype != dtype and requested != "torch":
        raise EngineError(
            "the cpu kernels do not support an 8-bit KV cache; leave out --kv-dtype, or use --kernels torch"
        )
    if requested != "torch":
        try:
            return CpuKernels(cache, shape, dtype, block_size, quantize=quantize, tile_threads=tile_threads)
        except KernelsUnavailable as error:
            if requested == "cpu" or quantize != "none":
                raise EngineError(f"the cpu kernels cannot run here: {error}") from error
            log.warning("using the torch kernels: the faster C kernels cannot run here: %s", error)
    if quantize != "none":
        raise EngineError("the torch kernels do not support quantization; leave out --kernels torch or --quantize")
    return TorchKernels(shape, dtype, block_size, pool_dtype)
