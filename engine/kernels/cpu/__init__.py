"""The operations in C, for any CPU that has a C compiler beside it; built at first use."""

from engine.kernels.cpu.build import Unavailable
from engine.kernels.cpu.kernels import CpuKernels

__all__ = ["CpuKernels", "Unavailable"]
