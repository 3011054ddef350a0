"""Save the durations of gaps between an answer and the next request, and restore them after a start."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from gateway.api.program_tracker import ProgramTracker
from gateway.journal.gap_store import GapStore, GapStoreError, gaps_of
from gateway.programs import EndedGap

log = logging.getLogger("myna.programs")

_SAVE_SECONDS = 10.0
"""Interval between two saves, in seconds."""
_MAX_PAUSE_SECONDS = 300.0
"""Longest pause while the database cannot be used, in seconds."""
_MAX_UNSAVED = 10_000
"""Maximum number of durations that are not stored yet, some 3 MB. The oldest are dropped first."""
_CLOSE_SECONDS = 5.0
"""Longest time to store the last durations, in seconds."""
_RESTORED_ROWS = 2
"""Number of rows that are restored in one turn of the event loop, some 1 ms each."""


class GapSaver:
    """Owner of the durations of gaps that the database does not have yet. It saves them, and restores the stored ones
    after a start.

    It works in the background: no request waits for the database, nor does the start of the server. The stop waits for
    at most `_CLOSE_SECONDS`."""

    def __init__(
        self, store: GapStore, tracker: ProgramTracker, is_gone: Callable[[str], bool] = lambda tenant: False
    ) -> None:
        """`is_gone`: whether a tenant is an API key that was deleted. The database must not have its durations."""
        self._store = store
        self._tracker = tracker
        self._is_gone = is_gone
        self._has_restored = False
        self._unsaved: deque[EndedGap] = deque(maxlen=_MAX_UNSAVED)
        self._forgotten: set[str] = set()
        """Deleted tenants that may still have rows."""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start to restore durations, then to store new ones."""
        self._tracker.gaps.on_ended = self._record
        self._tracker.on_forgotten = self._forgotten.add
        self._task = asyncio.create_task(self._run(), name="durations of tools")

    def _unix_offset(self) -> float:
        """Return the seconds by which the Unix clock, that of stored times, is ahead of the tracker's clock now.

        The tracker's clock begins anew with each start of the machine, so its times have no meaning in the database.
        """
        return time.time() - self._tracker.now()

    def _record(self, gap: EndedGap) -> None:
        # converted only once: if a gap is added again after an error, its time must be the same
        self._unsaved.append(gap._replace(ended=gap.ended + self._unix_offset()))

    async def restore(self) -> None:
        """Learn from the stored durations, between other work of the event loop. Do nothing if they were loaded before.
        Raises GapStoreError."""
        if self._has_restored:
            return
        rows = await self._store.load(time.time())
        self._has_restored = True
        durations = sets = damaged_rows = 0
        for begin in range(0, len(rows), _RESTORED_ROWS):
            # a key may be deleted between two turns of the event loop, or before this start without its rows
            known = [row for row in rows[begin : begin + _RESTORED_ROWS] if not self._is_gone(row.tenant)]
            found, damaged = gaps_of(known)
            offset = self._unix_offset()
            moved = [EndedGap(tenant, word, seconds, ended - offset) for tenant, word, seconds, ended in found]
            self._tracker.gaps.restore(moved, self._tracker.now())
            durations += len(found)
            sets += len(known) - damaged
            damaged_rows += damaged
            await asyncio.sleep(0)
        self._forgotten.update(row.tenant for row in rows if self._is_gone(row.tenant))
        if damaged_rows:
            log.warning(
                "%d rows with durations of tools are ignored: they are damaged, or of another version", damaged_rows
            )
        if durations:
            log.info("restored %d durations of %d sets of tools", durations, sets)

    async def save(self) -> None:
        """Store all durations, and delete those of deleted tenants. Raises GapStoreError."""
        if self._forgotten:
            forgotten = list(self._forgotten)
            await self._store.forget(forgotten)
            self._forgotten.difference_update(forgotten)
        gaps = [gap for gap in self._unsaved if not self._is_gone(gap.tenant)]
        self._unsaved.clear()
        if not gaps:
            return
        try:
            await self._store.add(gaps)
        except BaseException:
            room = _MAX_UNSAVED - len(self._unsaved)  # later ones may have arrived meanwhile
            self._unsaved.extendleft(reversed(gaps[-room:] if room else []))
            raise

    async def _run(self) -> None:
        pause = 0.0
        while True:
            await asyncio.sleep(pause)
            try:
                await self.restore()
                await self.save()
                pause = _SAVE_SECONDS
            except GapStoreError as error:
                pause = min(2 * max(pause, _SAVE_SECONDS), _MAX_PAUSE_SECONDS)
                log.warning("%s; the next attempt is in %.0f s", error, pause)
            except Exception:  # otherwise no duration would ever be stored again
                pause = min(2 * max(pause, _SAVE_SECONDS), _MAX_PAUSE_SECONDS)
                log.exception("the durations of tools cannot be stored; the next attempt is in %.0f s", pause)

    async def close(self) -> None:
        """Store the last durations. Those that cannot be stored are lost."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        if not self._unsaved and not self._forgotten:
            return
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self.restore()  # if it has not succeeded yet: the table may not exist
                await self.save()
        except (GapStoreError, TimeoutError) as error:
            log.warning("the last %d durations of tools are lost: %s", len(self._unsaved), error or "no answer")
