"""Shapes of layers for tests of kernels."""

from typing import Any

import torch

from engine.kernels import LayerShape

SIZE = 16
"""Tokens of a block."""
BF16, F32 = torch.bfloat16, torch.float32
EPS = 1e-5


def layer_shape(heads: int = 4, kv_heads: int = 2, head_size: int = 64, **other: Any) -> LayerShape:
    defaults: dict[str, Any] = {
        "rotary_size": head_size,
        "hidden": 64,
        "intermediate": 64,
        "activation": "silu",
        "scale": head_size**-0.5,
        "softcap": 0.0,
        "eps": EPS,
    }
    return LayerShape(heads, kv_heads, head_size, **{**defaults, **other})
