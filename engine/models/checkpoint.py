"""A checkpoint folder's weights, by name."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open

from engine.errors import CheckpointError

_PREFIXES = (("model.", ""), ("language_model.model.", "language_model."), ("model.language_model.", ""))
"""Where a text decoder's tensors stand, and its head, in checkpoints of text models and of those that also see."""


def open_weights(folder: Path) -> Callable[[str], torch.Tensor]:
    """A function from tensor name to tensor, memory-mapped, over one safetensors file or several.

    Names are those of a text model (`model.layers.0.…`). It raises CheckpointError for one that no file holds.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} holds no .safetensors file")
    try:
        handles = [safe_open(file, framework="pt") for file in files]
    except Exception as error:  # safetensors raises its own kind, which it does not export
        raise CheckpointError(f"{folder}: a .safetensors file cannot be read: {error}") from error
    owner = {name: handle for handle in handles for name in handle.keys()}  # noqa: SIM118 (not a dict)
    body, head = next((pair for pair in _PREFIXES if pair[0] + "embed_tokens.weight" in owner), _PREFIXES[0])

    def weight(name: str) -> torch.Tensor:
        own = body + name.removeprefix("model.") if name.startswith("model.") else head + name
        if own not in owner:
            raise CheckpointError(f"{folder} lacks the tensor {own!r}")
        tensor: torch.Tensor = owner[own].get_tensor(own)
        return tensor

    return weight


def weights_size(folder: Path, dtype: torch.dtype) -> int:
    """Bytes that the weights of a checkpoint take in this type."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as handle:
            shapes = (handle.get_slice(name).get_shape() for name in handle.keys())  # noqa: SIM118 (not a dict)
            total += sum(math.prod(shape) for shape in shapes) * dtype.itemsize
    return total
