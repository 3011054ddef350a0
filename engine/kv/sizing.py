"""Size of the KV pool on a CPU, from the free memory."""

from pathlib import Path

import psutil

_KV_SHARE = 0.3
"""Share of the free memory that the KV pool may use if `kv_tokens` is not set."""
_KV_WINDOWS = 32
"""Maximum size of the pool if `kv_tokens` is not set, in windows of the model."""
_CGROUP = Path("/sys/fs/cgroup")


def affordable_tokens(bytes_per_token: int, window: int, peers: int = 1) -> int:
    """Return the size of the KV pool if `kv_tokens` is not set, in tokens, for each of `peers` engines."""
    return max(1, min(int(free_memory() * _KV_SHARE / peers / bytes_per_token), _KV_WINDOWS * window))


def free_memory(root: Path = _CGROUP, process: Path = Path("/proc/self/cgroup")) -> int:
    """Return how many bytes this process may still use: the machine's free memory, or less if a control group limits
    it."""
    free = int(psutil.virtual_memory().available)
    for limit, used in _bounds(root, process):
        free = min(free, max(0, limit - used))
    return free


def _bounds(root: Path, process: Path) -> list[tuple[int, int]]:
    """Return (limit, used) in bytes of this process's control group and those above it, version 2 or 1.

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
        # Inside a container, the group's own path often does not exist: its files are in the root.
        for level in (folder, *folder.parents) if folder.is_dir() else (base,):
            bound = _bound(level, *names)
            if bound is not None:
                found.append(bound)
            if level == base:
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
