"""Where an engine computes, and whether it fits there."""

from dataclasses import dataclass

import torch

from engine.errors import EngineError

_GIB = 2**30
_KV_SHARE = 0.9
"""Part of a GPU's memory that is free behind the weights which the KV pool may take: the rest is for activations,
recorded steps and the libraries' workspaces."""


@dataclass(frozen=True)
class Room:
    """Bytes of a device. `free`: what nobody has; `name`: what people call it."""

    name: str
    free: int
    total: int


def choose_device(wanted: str) -> torch.device:
    """`auto` is the first GPU if there is one and the CPU otherwise; else cpu, cuda or cuda:N.

    Raises EngineError if the wanted one is not there.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        why = "this build of torch is without CUDA" if torch.version.cuda is None else "no GPU was found"
        raise EngineError(f"--device {wanted} cannot be had: {why}; try --device cpu, or `myna doctor`")
    count = torch.cuda.device_count()
    device = torch.device("cuda:0" if wanted in ("auto", "cuda") else wanted)
    if device.index >= count:
        raise EngineError(f"--device {wanted} cannot be had: there are {count} GPUs, counted from 0")
    return device


def room_on(device: torch.device) -> Room:
    """What a GPU has."""
    free, total = torch.cuda.mem_get_info(device)
    return Room(torch.cuda.get_device_name(device), free, total)


def check_weights(room: Room, size: int) -> None:
    """Raises EngineError if weights of so many bytes do not fit, and says what is missing."""
    if size > room.free:
        raise EngineError(
            f"the weights do not fit: they take {size / _GIB:.1f} GiB, and {room.free / _GIB:.1f} of "
            f"{room.total / _GIB:.1f} GiB are free on {room.name}; {(size - room.free) / _GIB:.1f} GiB are missing. "
            "Take a smaller model, end what else uses the GPU, or use --device cpu"
        )


def kv_tokens_on(
    room: Room, wanted: int, token_bytes: int, block_size: int, peers: int = 1, *, layer_numbers: int = 0
) -> int:
    """Tokens of KV for an engine, one of `peers` on this GPU: as wanted, or where that is 0 as many as fit.

    `room`: behind the weights. `layer_numbers`: elements of a token's keys in one layer, which the kernels count in 32
    bits. Raises EngineError if they do not fit, and says what is missing and what would.
    """
    most = int(room.free * _KV_SHARE / peers / token_bytes) // block_size * block_size
    if layer_numbers:
        reached = ((2**31 - 1) // layer_numbers - block_size) // block_size * block_size  # and a block of nobody's
        if wanted > reached:
            raise EngineError(f"the kernels reach {reached} tokens of KV of this model: lower --kv-tokens to that")
        most = min(most, reached)
    if most < block_size:
        raise EngineError(
            f"there is no room for a KV cache: {room.free / _GIB:.2f} of {room.total / _GIB:.1f} GiB are free on "
            f"{room.name} behind the weights. Take a smaller model, or end what else uses the GPU"
        )
    if wanted > most:
        missing = (wanted - most) * token_bytes / _KV_SHARE * peers
        raise EngineError(
            f"a KV cache of {wanted} tokens does not fit: it takes {wanted * token_bytes / _GIB:.1f} GiB, and "
            f"{room.free / _GIB:.1f} of {room.total / _GIB:.1f} GiB are free on {room.name} behind the weights; "
            f"{missing / _GIB:.1f} GiB are missing. Lower --kv-tokens to at most {most}"
        )
    return wanted or most
