"""The kernels in C, for any CPU with a C compiler. They are built on first use."""

from engine.kernels.cpu.build import KernelsUnavailable
from engine.kernels.cpu.kernels import CpuKernels

__all__ = ["CpuKernels", "KernelsUnavailable"]
