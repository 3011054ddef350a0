"""Save the learned durations of tools, and restore them after a start."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from gateway.journal.gap_store import GapStore, GapStoreError, gaps_of
from gateway.programs import EndedGap, ToolGaps

log = logging.getLogger("myna.programs")

_SAVE_SECONDS = 10.0
"""Interval in which new durations are stored, in seconds."""
_MAX_PAUSE_SECONDS = 300.0
"""Longest pause while the database cannot be used, in seconds."""
_MAX_UNSAVED = 10_000
"""Maximum number of durations that are not stored yet, some 3 MB. The oldest are dropped first."""
_CLOSE_SECONDS = 5.0
"""Longest time to store the last durations, in seconds."""


class GapSaver:
    """Owner of the durations that the database does not have yet. No request waits for the database."""

    def __init__(self, store: GapStore, gaps: ToolGaps, clock: Callable[[], float]) -> None:
        """`clock`: the clock of `gaps`, in seconds. Stored times are those of the Unix clock."""
        self._store = store
        self._gaps = gaps
        self._clock = clock
        self._unsaved: deque[EndedGap] = deque(maxlen=_MAX_UNSAVED)
        self._task: asyncio.Task[None] | None = None

    async def restore(self) -> None:
        """Learn from the stored durations. Call it once, before `start`. Without the database nothing is restored."""
        now = time.time()
        try:
            rows = await self._store.load(now)
        except GapStoreError as error:
            log.warning("nothing that was learned about programs is restored: %s", error)
            return
        found, damaged = gaps_of(rows)
        since_unix = self._clock() - now
        self._gaps.restore([gap._replace(ended=gap.ended + since_unix) for gap in found], self._clock())
        if damaged:
            log.warning("%d rows with durations of tools are ignored: they are damaged, or of another version", damaged)
        if found:
            log.info("restored %d durations of %d sets of tools", len(found), len(rows) - damaged)

    def start(self) -> None:
        """Start to store durations."""
        self._gaps.on_ended = self._record
        self._task = asyncio.create_task(self._run(), name="durations of tools")

    def _record(self, gap: EndedGap) -> None:
        """Record a gap that ends now, by the Unix clock."""
        self._unsaved.append(gap._replace(ended=time.time()))

    async def save(self) -> None:
        """Store all durations. Raises GapStoreError."""
        gaps = list(self._unsaved)
        if not gaps:
            return
        self._unsaved.clear()
        try:
            await self._store.add(gaps)
        except BaseException:
            room = _MAX_UNSAVED - len(self._unsaved)  # later ones may have arrived meanwhile
            self._unsaved.extendleft(reversed(gaps[-room:] if room else []))
            raise

    async def _run(self) -> None:
        pause = _SAVE_SECONDS
        while True:
            await asyncio.sleep(pause)
            try:
                await self.save()
                pause = _SAVE_SECONDS
            except GapStoreError as error:
                pause = min(2 * pause, _MAX_PAUSE_SECONDS)
                log.warning("%s; the next attempt is in %.0f s", error, pause)
            except Exception:  # otherwise no duration would ever be stored again
                pause = min(2 * pause, _MAX_PAUSE_SECONDS)
                log.exception("the durations of tools cannot be stored; the next attempt is in %.0f s", pause)

    async def close(self) -> None:
        """Store the last durations. Those that cannot be stored are lost."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self.save()
        except (GapStoreError, TimeoutError) as error:
            log.warning("the last %d durations of tools are lost: %s", len(self._unsaved), error or "no answer")
