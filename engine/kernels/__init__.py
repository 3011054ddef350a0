"""The operations a decoder is made of, in several hands that give the same results.

`torch` is the reference and runs anywhere; `cpu` is C, built at first use.
"""

from engine.kernels.base import AttentionBatch, Kernels, KVTensors, LayerShape, LayerWeights, Positions
from engine.kernels.select import select_kernels

__all__ = ["AttentionBatch", "KVTensors", "Kernels", "LayerShape", "LayerWeights", "Positions", "select_kernels"]
