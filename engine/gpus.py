"""How many GPUs there are, without loading torch: the gateway asks, which must stay small."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

_DEVICE = re.compile(r"nvidia\d+")


def visible_gpus(environment: Mapping[str, str] = os.environ, devices: Path = Path("/dev")) -> int:
    """GPUs that a process started here would see: those of the machine, or of its container, and of them what
    CUDA_VISIBLE_DEVICES leaves."""
    try:
        there = sum(_DEVICE.fullmatch(entry.name) is not None for entry in devices.iterdir())
    except OSError:
        return 0
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return there
    chosen = 0
    for name in named.split(","):  # as CUDA reads it: nothing counts behind the first that is not there
        name = name.strip()
        if not name or name == "-1" or (name.isdigit() and int(name) >= there):
            break
        chosen += 1
    return min(chosen, there)
