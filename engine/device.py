"""Choice of an engine's device, and check of its memory."""

from dataclasses import dataclass

import torch

from engine.errors import EngineError

_GIB = 2**30
_KV_SHARE = 0.9
"""Maximum share of the GPU memory that is free after loading the weights which the KV pool may use. The rest is for
activations, CUDA graphs and the libraries' workspaces."""


@dataclass(frozen=True)
class DeviceMemory:
    """Name, free memory and total memory of a device, in bytes."""

    name: str
    free: int
    total: int


def choose_device(name: str) -> torch.device:
    """Return the device for `--device`: `auto`, `cpu`, `cuda` or `cuda:N`.

    `auto` is the first GPU if there is one, else the CPU. Raises EngineError if the device is not available.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        why = "torch is built without CUDA" if torch.version.cuda is None else "no GPU was found"
        raise EngineError(f"--device {name} is not available: {why}; try --device cpu, or run `myna doctor`")
    count = torch.cuda.device_count()
    device = torch.device("cuda:0" if name in ("auto", "cuda") else name)
    if device.index >= count:
        raise EngineError(f"--device {name} is not available: there are {count} GPUs, numbered from 0")
    return device


def device_memory(device: torch.device) -> DeviceMemory:
    """Return the memory of a GPU."""
    free, total = torch.cuda.mem_get_info(device)
    return DeviceMemory(torch.cuda.get_device_name(device), free, total)


def check_weights(memory: DeviceMemory, size: int) -> None:
    """Raise EngineError if `size` bytes of weights do not fit. The message says how much memory is missing."""
    if size > memory.free:
        raise EngineError(
            f"the weights do not fit: they need {size / _GIB:.1f} GiB, and {memory.free / _GIB:.1f} of "
            f"{memory.total / _GIB:.1f} GiB are free on {memory.name}; "
            f"{(size - memory.free) / _GIB:.1f} GiB are missing. "
            "Use a smaller model, stop other processes on the GPU, or use --device cpu"
        )


def kv_pool_tokens(
    memory: DeviceMemory, requested: int, token_bytes: int, block_size: int, peers: int = 1, *, key_elements: int = 0
) -> int:
    """Return the size of the KV pool of one of `peers` engines on a GPU, in tokens.

    `memory`: the GPU's memory after the weights are loaded.
    `requested`: the size that the user requests; 0 selects the largest that fits.
    `key_elements`: number of key elements per token and layer. The kernels compute offsets in 32 bits, which bounds
        the pool.

    Raises EngineError if the pool does not fit. The message says how much memory is missing and which size would fit.
    """
    maximum = int(memory.free * _KV_SHARE / peers / token_bytes) // block_size * block_size
    if key_elements:
        addressable = ((2**31 - 1) // key_elements - block_size) // block_size * block_size  # less the scratch block
        if requested > addressable:
            raise EngineError(
                f"the kernels can address {addressable} tokens of KV of this model: lower --kv-tokens to that"
            )
        maximum = min(maximum, addressable)
    if maximum < block_size:
        raise EngineError(
            f"no memory is left for the KV cache: {memory.free / _GIB:.2f} of {memory.total / _GIB:.1f} GiB are free "
            f"on {memory.name} after loading the weights. Use a smaller model, or stop other processes on the GPU"
        )
    if requested > maximum:
        missing = (requested - maximum) * token_bytes / _KV_SHARE * peers
        raise EngineError(
            f"a KV cache of {requested} tokens does not fit: it needs {requested * token_bytes / _GIB:.1f} GiB, and "
            f"{memory.free / _GIB:.1f} of {memory.total / _GIB:.1f} GiB are free on {memory.name} after loading the "
            f"weights; {missing / _GIB:.1f} GiB are missing. Lower --kv-tokens to at most {maximum}"
        )
    return requested or maximum
