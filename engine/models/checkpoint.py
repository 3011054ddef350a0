"""Weights of a checkpoint folder, by name."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from engine.errors import CheckpointError

_PREFIXES = (("model.", ""), ("language_model.model.", "language_model."), ("model.language_model.", ""), ("", ""))
"""Prefixes of the decoder's and the head's tensors, in checkpoints of text models, of vision-language models, and of
models without a head."""


_DTYPES = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})
"""Supported dtypes of weights. Integers and eight-bit types mean that the weights are quantized."""


def open_weights(folder: Path) -> Callable[[str], torch.Tensor]:
    """Return a function from tensor name to tensor, memory-mapped, over all safetensors files of the folder.

    Names are those of a text model (`model.layers.0.…`). The function raises CheckpointError if no file has the tensor.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} holds no .safetensors file")
    handles = [_open(file) for file in files]
    owner = {name: handle for handle in handles for name in handle.keys()}  # noqa: SIM118 (not a dict)
    body, head = next((pair for pair in _PREFIXES if pair[0] + "embed_tokens.weight" in owner), _PREFIXES[0])

    def weight(name: str) -> torch.Tensor:
        full_name = body + name.removeprefix("model.") if name.startswith("model.") else head + name
        if full_name not in owner:
            raise CheckpointError(f"it lacks the tensor {full_name!r}")
        try:
            tensor: torch.Tensor = owner[full_name].get_tensor(full_name)
        except Exception as error:  # as in `_open`
            raise CheckpointError(f"the tensor {full_name!r} cannot be read: {error}") from error
        if tensor.dtype not in _DTYPES:
            supported = "float64, float32, float16 or bfloat16"
            raise CheckpointError(f"the tensor {full_name!r} is {tensor.dtype}; weights must be {supported}")
        return tensor

    return weight


def _open(file: Path) -> Any:
    """Return a handle of the file. Raise CheckpointError, which names the file."""
    try:
        return safe_open(file, framework="pt")
    except Exception as error:  # safetensors does not export its exception
        raise CheckpointError(f"{file} cannot be read: {error}") from error


def weights_size(folder: Path, dtype: torch.dtype) -> int:
    """Return the size of a checkpoint's weights in the given dtype, in bytes."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with _open(file) as handle:
            shapes = (handle.get_slice(name).get_shape() for name in handle.keys())  # noqa: SIM118 (not a dict)
            total += sum(math.prod(shape) for shape in shapes) * dtype.itemsize
    return total
