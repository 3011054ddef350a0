"""The graph's log on disk: one writer, commits that gather what came while the one before was on its way."""

import asyncio
import logging
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

from gateway.graph.errors import GraphError
from gateway.graph.events import Event, Fact, SessionEnded
from gateway.graph.session import Bounds, Session
from gateway.journal.file import Batch, JournalFile
from gateway.journal.records import encode, record_of, session_record
from gateway.journal.replay import mend, replay

log = logging.getLogger("myna.journal")

_LINGER_SECONDS = 0.05
"""Facts that nobody waits for are gathered so long."""
_RETRY_SECONDS = 1.0
"""Between two attempts at a file that fails."""


class JournalFailed(GraphError):
    """What was to be kept could not be."""

    code: ClassVar[str] = "journal_failed"


class Journal:
    """See `gateway.graph.events.Log`. Owner of the file, of the thread that writes it, and of what is not in it yet.

    Facts are taken on the event loop. A commit that fails loses nothing: what was in it goes into the next, which is
    tried again and again; but whoever waited is told, and `check` refuses new work until it has succeeded.
    """

    def __init__(self, path: Path) -> None:
        """Raises JournalError if the file cannot be used."""
        self._path = path
        self._file = JournalFile(path)
        self._thread = ThreadPoolExecutor(1, "journal")
        self._keys: dict[Session, int] = {}
        self._next_key = 1
        self._rows: list[bytes] = []
        self._ended: list[int] = []
        self._expired: list[tuple[str, str]] = []
        self._next: asyncio.Future[None] | None = None
        """Of whoever waits for the facts that are in no commit yet."""
        self._flying: asyncio.Future[None] | None = None
        """Of the commit that is on its way."""
        self._timer: asyncio.TimerHandle | None = None
        self._failure: JournalFailed | None = None
        self._closed = False

    def restore(self, bounds: Bounds) -> list[Session]:
        """The sessions that the file holds, oldest first; their unfinished calls are still to be begun anew.

        To be called once, before anything is written. Raises JournalError.
        """
        sessions = []
        for key, session in replay(self._file, bounds, self):
            self._keys[session] = key
            self._next_key = key + 1
            mend(session)
            sessions.append(session)
        return sessions

    def expired(self) -> list[tuple[str, str]]:
        """Tenants and ids of the last sessions that have expired, oldest first."""
        return self._file.expired()

    # Log

    def check(self) -> None:
        """See `Log.check`. Raises JournalFailed."""
        if self._failure is not None:
            raise self._failure

    def opened(self, session: Session) -> None:
        """See `Log.opened`."""
        if self._closed:
            return
        self._keys[session] = self._next_key
        self._next_key += 1
        self._rows.append(_row(self._keys[session], 0, encode(session_record(session))))
        self._begin_soon()

    def write(self, session: Session, fact: Fact) -> None:
        """See `Log.write`."""
        key = self._keys.get(session)
        if key is None or self._closed:
            return
        if isinstance(fact, Event) and isinstance(fact.change, SessionEnded):
            del self._keys[session]
            self._ended.append(key)
            if fact.change.expired:
                self._expired.append((session.tenant, session.id))
        else:
            self._rows.append(_row(key, session.facts, encode(record_of(fact))))
        self._begin_soon()

    def _begin_soon(self) -> None:
        if self._flying is None and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LINGER_SECONDS, self._begin)

    @property
    def _pending(self) -> bool:
        return bool(self._rows or self._ended)

    async def flushed(self) -> None:
        """See `Log.flushed`. Raises JournalFailed."""
        self.check()
        if self._closed:
            raise JournalFailed("the server is stopping")
        if not self._pending:
            if self._flying is not None:
                await asyncio.shield(self._flying)
            return
        loop = asyncio.get_running_loop()
        if self._next is None:
            self._next = loop.create_future()
            if self._flying is None:
                loop.call_soon(self._begin)  # behind whatever else this turn of the loop brings
        await asyncio.shield(self._next)

    # commits

    def _begin(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._flying is not None or not self._pending:
            return
        loop = asyncio.get_running_loop()
        batch = Batch(self._rows, self._ended, self._expired)
        self._rows, self._ended, self._expired = [], [], []
        self._flying, self._next = self._next or loop.create_future(), None
        commit = loop.run_in_executor(self._thread, self._file.commit, batch)
        commit.add_done_callback(lambda commit: self._landed(batch, commit.exception()))

    def _landed(self, batch: Batch, error: BaseException | None) -> None:
        flying, self._flying = self._flying, None
        assert flying is not None
        if error is None:
            if self._failure is not None:
                log.warning("the journal %s is written again", self._path)
                self._failure = None
            flying.set_result(None)
        else:
            self._failed(batch, error)
            flying.set_exception(self._failure or error)
            flying.exception()  # perhaps nobody waited
        if self._pending and not self._closed:
            loop = asyncio.get_running_loop()
            if self._failure is not None:
                self._timer = loop.call_later(_RETRY_SECONDS, self._begin)
            elif self._next is not None:
                self._begin()
            else:
                self._timer = loop.call_later(_LINGER_SECONDS, self._begin)

    def _failed(self, batch: Batch, error: BaseException) -> None:
        """What was in the commit goes before what came since; whoever waits for that is told as well."""
        if self._failure is None:
            log.error("the journal %s cannot be written: %s; deferred work is refused until it can", self._path, error)
        if not isinstance(error, sqlite3.Error):
            log.error("a commit failed for a reason of our own", exc_info=error)
        self._failure = JournalFailed(f"the journal cannot be written: {error}")
        self._rows = [*batch.rows, *self._rows]
        self._ended = [*batch.ended, *self._ended]
        self._expired = [*batch.expired, *self._expired]
        if self._next is not None:
            waiting, self._next = self._next, None
            waiting.set_exception(self._failure)
            waiting.exception()

    async def close(self) -> None:
        """Writes what there is, takes nothing more, and gives the file back. What happens later did not happen."""
        if self._closed:
            return
        try:
            while self._pending or self._flying is not None:
                await self.flushed()
        except JournalFailed as error:
            log.error("the journal's last %d facts are lost: %s", len(self._rows), error)
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._file.close)
        self._thread.shutdown()


def _row(session: int, seq: int, body: bytes) -> bytes:
    return b"[%d,%d,%b]" % (session, seq, body)
