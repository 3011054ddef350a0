"""KV that left the pool for the host's memory: which block lies in which slot, and what is to be copied.

Bookkeeping only, as `kv_cache.py`. What a plan wants copied is carried out before its step, all that goes out before
anything that comes in; so within a plan a slot that is to be read is not written again.
"""

from collections import OrderedDict
from dataclasses import dataclass

Key = tuple[int, ...]


@dataclass(frozen=True)
class Swaps:
    """Copies to make, in this order. outs: blocks of the pool to slots; ins: slots to blocks of the pool."""

    outs: list[tuple[int, int]]
    ins: list[tuple[int, int]]


@dataclass(frozen=True)
class _Kept:
    slot: int
    key: Key
    before: int


class HostOffload:
    """Owner of the slots, by the path of the block that lies there; what was used longest ago makes room.

    A path is a digest of a block's tokens and all before them; `key`, its own tokens, and `before`, the path of the
    block before it, tell two apart whose digests are equal.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._free = list(range(slots - 1, -1, -1))
        self._kept: OrderedDict[int, _Kept] = OrderedDict()
        self._outs: dict[int, int] = {}
        self._ins: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, path: int, key: Key, before: int, block: int) -> None:
        """The block is about to be given up; it stays here, if there is room."""
        if path in self._kept:  # what comes from here is here still
            self._kept.move_to_end(path)
            return
        if not self._free:
            busy = set(self._ins.values())
            oldest = next((at for at, kept in self._kept.items() if kept.slot not in busy), None)
            if oldest is None:
                return
            self._free.append(self._kept.pop(oldest).slot)
        slot = self._free.pop()
        self._outs[slot] = block
        self._kept[path] = _Kept(slot, key, before)

    def has(self, path: int, key: Key, before: int) -> bool:
        """Whether the block lies here."""
        kept = self._kept.get(path)
        return kept is not None and (kept.key, kept.before) == (key, before)

    def bring(self, path: int, block: int) -> None:
        """Copies what lies here into a block of the pool. It stays here as well."""
        self._kept.move_to_end(path)
        self._ins[block] = self._kept[path].slot

    def take(self) -> Swaps:
        """What is to be copied now."""
        outs, ins = self._outs, self._ins
        self._outs, self._ins = {}, {}
        return Swaps([(block, slot) for slot, block in outs.items()], [(slot, block) for block, slot in ins.items()])
