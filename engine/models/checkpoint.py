"""A checkpoint folder's weights, by name."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from engine.errors import CheckpointError

_PREFIXES = (("model.", ""), ("language_model.model.", "language_model."), ("model.language_model.", ""))
"""Where a text decoder's tensors stand, and its head, in checkpoints of text models and of those that also see."""


_DTYPES = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})
"""Types of weights. Integers and eight-bit types mean that the weights are quantized."""


def open_weights(folder: Path) -> Callable[[str], torch.Tensor]:
    """A function from tensor name to tensor, memory-mapped, over one safetensors file or several.

    Names are those of a text model (`model.layers.0.…`). It raises CheckpointError for one that no file holds.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} holds no .safetensors file")
    handles = [_opened(file) for file in files]
    owner = {name: handle for handle in handles for name in handle.keys()}  # noqa: SIM118 (not a dict)
    body, head = next((pair for pair in _PREFIXES if pair[0] + "embed_tokens.weight" in owner), _PREFIXES[0])

    def weight(name: str) -> torch.Tensor:
        own = body + name.removeprefix("model.") if name.startswith("model.") else head + name
        if own not in owner:
            raise CheckpointError(f"it lacks the tensor {own!r}")
        try:
            tensor: torch.Tensor = owner[own].get_tensor(own)
        except Exception as error:  # as in `_opened`
            raise CheckpointError(f"the tensor {own!r} cannot be read: {error}") from error
        if tensor.dtype not in _DTYPES:
            supported = "float64, float32, float16 or bfloat16"
            raise CheckpointError(f"the tensor {own!r} is {tensor.dtype}; weights must be {supported}")
        return tensor

    return weight


def _opened(file: Path) -> Any:
    """Return a handle of the file. Raise CheckpointError, which names the file."""
    try:
        return safe_open(file, framework="pt")
    except Exception as error:  # safetensors raises its own kind, which it does not export
        raise CheckpointError(f"{file} cannot be read: {error}") from error


def weights_size(folder: Path, dtype: torch.dtype) -> int:
    """Bytes that the weights of a checkpoint take in this type."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with _opened(file) as handle:
            shapes = (handle.get_slice(name).get_shape() for name in handle.keys())  # noqa: SIM118 (not a dict)
            total += sum(math.prod(shape) for shape in shapes) * dtype.itemsize
    return total
