"""The operations of a decoder, in several implementations with the same results.

`torch` is the reference and runs on any CPU; `cpu` is C, built on first use; `triton` is for GPUs.
"""

from engine.kernels.base import AttentionBatch, Kernels, KVTensors, LayerShape, LayerWeights, Positions
from engine.kernels.select import Limits, select_kernels

__all__ = [
    "AttentionBatch",
    "KVTensors",
    "Kernels",
    "LayerShape",
    "LayerWeights",
    "Limits",
    "Positions",
    "select_kernels",
]
