"""KV blocks offloaded to host memory: which block is in which host slot, and which copies the next step makes.

This is bookkeeping only, like `cache.py`. The engine makes the copies of a plan before its step, all copies out before
any copy in. So within a plan, a host slot that is to be read is not overwritten.
"""

from collections import OrderedDict
from dataclasses import dataclass

Key = tuple[int, ...]


@dataclass(frozen=True)
class Swaps:
    """Copies to make: first `outs`, pairs (block of the pool, host slot), then `ins`, pairs (host slot, block of the
    pool)."""

    outs: list[tuple[int, int]]
    ins: list[tuple[int, int]]


@dataclass(frozen=True)
class _OffloadedBlock:
    slot: int
    key: Key
    parent_path: int


class HostOffload:
    """Owner of the host slots, by the path of the block in each. The least recently used block makes room.

    A path is a digest of a block's tokens and all tokens before them. `key`, its own tokens, and `parent_path`, the
    path of the previous block, tell blocks with equal digests apart.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._free = list(range(slots - 1, -1, -1))
        self._blocks: OrderedDict[int, _OffloadedBlock] = OrderedDict()
        self._outs: dict[int, int] = {}
        self._ins: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._blocks)

    def store(self, path: int, key: Key, parent_path: int, block: int) -> None:
        """Offload a block that the pool is about to evict, if there is room."""
        if path in self._blocks:  # a block that was loaded from a slot is still there
            self._blocks.move_to_end(path)
            return
        if not self._free:
            busy = set(self._ins.values())
            oldest = next(
                (oldest_path for oldest_path, offloaded in self._blocks.items() if offloaded.slot not in busy), None
            )
            if oldest is None:
                return
            self._free.append(self._blocks.pop(oldest).slot)
        slot = self._free.pop()
        self._outs[slot] = block
        self._blocks[path] = _OffloadedBlock(slot, key, parent_path)

    def contains(self, path: int, key: Key, parent_path: int) -> bool:
        """Return whether the block is offloaded."""
        offloaded = self._blocks.get(path)
        return offloaded is not None and (offloaded.key, offloaded.parent_path) == (key, parent_path)

    def load(self, path: int, block: int) -> None:
        """Schedule a copy of an offloaded block into a block of the pool. The host slot keeps it too."""
        self._blocks.move_to_end(path)
        self._ins[block] = self._blocks[path].slot

    def take_swaps(self) -> Swaps:
        """Return the copies between GPU and host that the next step has to make, and clear the list."""
        outs, ins = self._outs, self._ins
        self._outs, self._ins = {}, {}
        return Swaps([(block, slot) for slot, block in outs.items()], [(slot, block) for block, slot in ins.items()])
