"""How much memory there is for the KV pool."""

from pathlib import Path

import psutil

_KV_SHARE = 0.3
"""Part of the free memory that the KV pool may take where `kv_tokens` is not given."""
_KV_WINDOWS = 32
"""More windows than this are not reserved unasked."""
_CGROUP = Path("/sys/fs/cgroup")


def affordable_tokens(bytes_per_token: int, window: int, peers: int = 1) -> int:
    """Tokens of KV to reserve where nobody said how many, by each of so many engines."""
    return max(1, min(int(free_memory() * _KV_SHARE / peers / bytes_per_token), _KV_WINDOWS * window))


def free_memory(root: Path = _CGROUP, process: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes that this process may still take: the machine's, or less where a control group bounds it."""
    free = int(psutil.virtual_memory().available)
    for limit, used in _bounds(root, process):
        free = min(free, max(0, limit - used))
    return free


def _bounds(root: Path, process: Path) -> list[tuple[int, int]]:
    """(limit, used) in bytes for this process's control group and those above it, version 2 or 1.

    Page cache that can be dropped does not count as used.
    """
    try:
        lines = process.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, names = root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            base = root / "memory"
        else:
            continue
        folder = base / path.lstrip("/")
        # inside a container the group's own path is often not there, and its files stand at the root
        for at in (folder, *folder.parents) if folder.is_dir() else (base,):
            bound = _bound(at, *names)
            if bound is not None:
                found.append(bound)
            if at == base:
                break
    return found


def _bound(folder: Path, limit: str, used: str, droppable: str) -> tuple[int, int] | None:
    try:
        text = (folder / limit).read_text().strip()
        if text == "max":
            return None
        current = int((folder / used).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return int(text), current - int(stat.get(droppable, 0))
    except (OSError, ValueError):
        return None
