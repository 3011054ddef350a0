"""The operations in C, for x86-64 CPUs with AVX512-bf16; built at first use."""

from engine.kernels.cpu.build import Unavailable
from engine.kernels.cpu.kernels import CpuKernels

__all__ = ["CpuKernels", "Unavailable"]
