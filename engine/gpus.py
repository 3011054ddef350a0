"""Number of GPUs that an engine can use, without loading torch: the gateway calls this, and must stay small."""

import os
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

_DEVICE = re.compile(r"nvidia\d+")


_WITHOUT = re.compile(r"^cuda\b[^=\n]*=\s*None\s*$", re.MULTILINE)


def torch_has_cuda(version: str | None = None) -> bool:
    """Return whether torch is built with CUDA. `version`: the text of torch's `version.py`; by default that of the
    installed one."""
    if version is None:
        found = find_spec("torch")  # does not load it
        if found is None or not found.submodule_search_locations:
            return False
        version = (Path(found.submodule_search_locations[0]) / "version.py").read_text(encoding="utf-8")
    return _WITHOUT.search(version) is None


def usable_gpus() -> int:
    """Return the number of GPUs that an engine can use: 0 if torch is built without CUDA."""
    return visible_gpus() if torch_has_cuda() else 0


def visible_gpus(environment: Mapping[str, str] = os.environ, devices: Path = Path("/dev")) -> int:
    """Return the number of GPUs of this machine or container that CUDA_VISIBLE_DEVICES leaves visible."""
    try:
        count = sum(_DEVICE.fullmatch(entry.name) is not None for entry in devices.iterdir())
    except OSError:
        return 0
    value = environment.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return count
    visible = 0
    for name in value.split(","):  # as CUDA parses it: it ignores everything from the first invalid entry on
        name = name.strip()
        if not name or name == "-1" or (name.isdigit() and int(name) >= count):
            break
        visible += 1
    return min(visible, count)
