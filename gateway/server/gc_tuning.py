"""Schedule Python's cycle collector, which blocks the event loop while it runs.

Reference cycles are rare: a finished request frees its objects immediately (`Session.dissolve`), and an ended session
soon after (`SessionStore.dissolve_ended`). Only Python exceptions leave cycles. So the collector examines new objects
in small batches. A full collection takes 0.1 s while a thousand answers stream. So it runs while the server is idle, or
rarely.
"""

import gc
import time
from collections.abc import Callable

import psutil

from gateway.runtime.executors import trim_memory

_YOUNG_THRESHOLD = 3_000
"""Number of new objects after which the collector examines them."""
_MIDDLE_THRESHOLD = 1
"""Number of these collections after which it examines the survivors once more."""
_NEVER = 1 << 30
_GROWTH_BYTES = 32 << 20
"""Number of bytes by which the process may grow before it returns memory to the system while idle."""
_SHARE_IDLE, _SHARE_BUSY = 0.01, 0.001
"""Maximum share of the time for full collections, while idle and while clients wait."""


class GcTuner:
    """Owner of the collector's settings in this process."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        memory: Callable[[], int] = lambda: int(psutil.Process().memory_info().rss),
    ) -> None:
        """`memory`: resident bytes of the process."""
        self._clock = clock
        self._memory = memory
        self._min_memory = memory()
        """Smallest number of resident bytes of the process so far."""
        self._last_trim = clock()
        self._trim_duration = 0.0
        self._last_collection = clock()
        self._collection_duration = 0.0

    def start(self) -> None:
        """Start. Objects that exist now are permanent, and are never examined again."""
        gc.set_threshold(_YOUNG_THRESHOLD, _MIDDLE_THRESHOLD, _NEVER)
        self._collect()
        gc.freeze()

    def sweep(self, *, idle: bool) -> bool:
        """Run a full collection if it is due, and return whether it ran. Call it periodically. `idle`: whether no
        client waits."""
        if idle:
            self._trim()
        if not any(gc.get_count()[1:]):  # no new objects have survived
            return False
        if self._collection_duration > (_SHARE_IDLE if idle else _SHARE_BUSY) * (self._clock() - self._last_collection):
            return False
        self._collect()
        return True

    def _trim(self) -> None:
        """Return memory to the system after large requests; glibc would retain it.

        Objects of a request are often freed only after the first attempt, so it repeats, for at most `_SHARE_IDLE` of
        the time.
        """
        self._min_memory = min(self._min_memory, used := self._memory())
        now = self._clock()
        if used <= self._min_memory + _GROWTH_BYTES or self._trim_duration > _SHARE_IDLE * (now - self._last_trim):
            return
        self._collect()  # exceptions may refer to large bodies
        trim_memory()
        self._last_trim = self._clock()
        self._trim_duration = self._last_trim - now

    def _collect(self) -> None:
        began = self._clock()
        gc.collect()
        self._last_collection = self._clock()
        self._collection_duration = self._last_collection - began
