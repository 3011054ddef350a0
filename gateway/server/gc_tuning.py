"""When Python's cycle collector runs: it holds everybody up for as long as it looks.

What a plain request leaves is let go of at once (`Session.dissolve`), and what an ended session leaves soon after
(`SessionStore.dissolve_ended`). So there is little to find: what errors hold on to. New objects are looked at a few at
a time. To look at everything takes a tenth of a second where a thousand answers stream; that is done while nobody
waits, or seldom.
"""

import gc
import time
from collections.abc import Callable

import psutil

from gateway.runtime.executors import trim_memory

_FEW = 3_000
"""New objects until they are looked at."""
_AGAIN = 1
"""How often that is done until what has stayed is looked at once more."""
_NEVER = 1 << 30
_MUCH_BYTES = 32 << 20
"""Bytes by which the process may grow while idle before memory is given back."""
_SHARE_IDLE, _SHARE_BUSY = 0.01, 0.001
"""Of the time, that may go into looking at everything: while nobody waits, and else."""


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
        self._least = memory()
        """Resident bytes of the process when it was smallest."""
        self._given_back = clock()
        self._giving_took = 0.0
        self._last = clock()
        self._took = 0.0

    def begin(self) -> None:
        """All that there is by now stays for good, and is not looked at again."""
        gc.set_threshold(_FEW, _AGAIN, _NEVER)
        self._look()
        gc.freeze()

    def sweep(self, *, idle: bool) -> bool:
        """To be called now and then: looks at everything if that is due. `idle`: nobody waits for anything."""
        if idle:
            self._give_back()
        if not any(gc.get_count()[1:]):  # nothing new has stayed
            return False
        if self._took > (_SHARE_IDLE if idle else _SHARE_BUSY) * (self._clock() - self._last):
            return False
        self._look()
        return True

    def _give_back(self) -> None:
        """Return memory to the system where large requests have left much of it: glibc keeps it otherwise.

        What a request held is often freed after the first time: so it is done again, in `_SHARE_IDLE` of the time.
        """
        self._least = min(self._least, held := self._memory())
        now = self._clock()
        if held <= self._least + _MUCH_BYTES or self._giving_took > _SHARE_IDLE * (now - self._given_back):
            return
        self._look()  # a few objects that errors hold on to may hold large bodies
        trim_memory()
        self._given_back = self._clock()
        self._giving_took = self._given_back - now

    def _look(self) -> None:
        began = self._clock()
        gc.collect()
        self._last = self._clock()
        self._took = self._last - began
