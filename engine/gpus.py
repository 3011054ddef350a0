"""How many GPUs an engine could use, without loading torch: the gateway asks, which must stay small."""

import os
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

_DEVICE = re.compile(r"nvidia\d+")


_WITHOUT = re.compile(r"^cuda\b[^=\n]*=\s*None\s*$", re.MULTILINE)


def torch_has_cuda(version: str | None = None) -> bool:
    """Whether the torch that is installed was built for GPUs. `version`: its `version.py`, if not that one's."""
    if version is None:
        found = find_spec("torch")  # which does not load it
        if found is None or not found.submodule_search_locations:
            return False
        version = (Path(found.submodule_search_locations[0]) / "version.py").read_text(encoding="utf-8")
    return _WITHOUT.search(version) is None


def usable_gpus() -> int:
    """GPUs that an engine started here could use: none with a torch built without CUDA, however many there are."""
    return visible_gpus() if torch_has_cuda() else 0


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
