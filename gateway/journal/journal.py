"""The graph's log, kept: one writer, commits that gather what came while the one before was on its way."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar

from gateway.graph.errors import GraphError
from gateway.graph.events import Event, Fact, SessionEnded
from gateway.graph.session import Session, SessionLimits
from gateway.journal.records import Record, entries_of, record_of, session_record
from gateway.journal.replay import mend, replay
from gateway.journal.storage import Batch, Entry, LeaseLost, Opened, Row, Storage

log = logging.getLogger("myna.journal")

_LINGER_SECONDS = 0.05
"""Facts that nobody waits for are gathered so long."""
_GATHER_SECONDS = 0.002
_COMPANY = 8
"""Where so many waited for one commit, the next waits so long for company."""
_RETRY_SECONDS = 1.0
"""Between two attempts at a storage that fails."""
_CLOSE_SECONDS = 10.0
"""Longest time that `close` waits for a storage, in seconds."""


class JournalFailed(GraphError):
    """What was to be kept could not be."""

    code: ClassVar[str] = "journal_failed"


class Journal:
    """See `gateway.graph.events.Log`. Owner of what is kept in nothing yet.

    Facts are taken on the event loop. A commit that fails loses nothing: what was in it goes into the next, which is
    tried again and again; but whoever waited is told, and `check` refuses new work until it has succeeded.

    A fact whose content the storage can never write fails its own session and no other. The journal removes the
    session, and calls `on_lost` with it.
    """

    def __init__(self, storage: Storage, on_lost: Callable[[Session, GraphError], None] | None = None) -> None:
        """`on_lost` ends a session that cannot be kept. It may also be set later."""
        self._storage = storage
        self.on_lost = on_lost
        self._keys: dict[Session, int] = {}
        self._facts: list[tuple[int, int, Record]] = []
        """Keys of sessions, numbers and facts, in no commit yet."""
        self._unwritten: list[Entry] = []
        """Entries of commits that failed, older than all facts above."""
        self._opened: list[Opened] = []
        self._ended: list[int] = []
        self._expired: list[tuple[str, str]] = []
        self._waiting: list[asyncio.Future[None]] = []
        """Whoever waits for facts that are in no commit yet."""
        self._flying: list[asyncio.Future[None]] | None = None
        """Whoever waits for the commit that is on its way, if one is."""
        self._alone = 0
        """Number of unwritten entries that are committed one by one, to find those that cannot be written."""
        self._busy = False
        """Whether the last commit found company worth waiting for."""
        self._timer: asyncio.TimerHandle | None = None
        self._failure: JournalFailed | None = None
        self._closed = False

    def restore(self, rows: Iterable[Row], bounds: SessionLimits) -> list[Session]:
        """The sessions that were kept, oldest first; their unfinished calls are still to be begun anew.

        Raises JournalError.
        """
        sessions = []
        last: dict[int, int] = {}
        """Id of the last row of each session, by key."""

        def noted() -> Iterator[Row]:
            for id, entries in rows:
                last.update((key, id) for key, _ in entries)
                yield id, entries

        for key, session in replay(noted(), bounds, self, self._storage.damaged).items():
            self._keys[session] = key
            try:
                mend(session)
            except Exception as error:  # as in `replay`: rows that contradict each other may cause any error
                problem = f"session {key}: {type(error).__name__}: {error}"
                raise self._storage.damaged(last[key], problem) from error
            sessions.append(session)
        return sessions

    # Log

    def check(self) -> None:
        """See `Log.check`. Raises JournalFailed."""
        if self._closed:
            raise JournalFailed("the server is stopping")
        if self._failure is not None:
            raise self._failure

    def opened(self, session: Session) -> None:
        """See `Log.opened`."""
        if self._closed:
            return
        key = self._keys[session] = self._storage.new_key()
        self._opened.append(Opened(key, session.tenant, session.id))
        self._facts.append((key, 0, session_record(session)))
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
            try:
                self._facts.append((key, session.facts, record_of(fact)))
            except Exception as error:  # end the session later: now it is in the middle of a change
                asyncio.get_running_loop().call_soon(self._lose, key, error)
        self._begin_soon()

    def _begin_soon(self) -> None:
        if self._flying is None and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LINGER_SECONDS, self._begin)

    @property
    def _pending(self) -> bool:
        return bool(self._facts or self._ended or self._unwritten)

    async def flushed(self) -> None:
        """See `Log.flushed`. Raises JournalFailed. Once closed, it does not return: what happens from then on happens
        again after the next start, perhaps otherwise, and so nobody is to be told of it."""
        loop = asyncio.get_running_loop()
        if self._closed:
            await loop.create_future()
        self.check()
        if self._pending:
            waiters = self._waiting
            if self._flying is None and not self._busy:
                loop.call_soon(self._begin)  # behind whatever else this turn of the loop brings
        elif self._flying is not None:
            waiters = self._flying
        else:
            return
        # a future each: what they share would have to be shielded, which costs more
        kept = loop.create_future()
        waiters.append(kept)
        await kept

    # commits

    def _begin(self) -> None:
        """Start the next commit. It must not raise: no other code would start the next one."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._flying is not None or not self._pending:
            self._busy = False
            return
        batch = self._next_batch()
        self._flying, self._waiting = self._waiting, []
        self._busy = len(self._flying) >= _COMPANY
        try:
            commit = self._storage.commit(batch)
        except Exception as error:  # the event loop would only log it
            self._landed(batch, error)
        else:
            commit.add_done_callback(lambda commit: self._landed(batch, commit.exception()))

    def _next_batch(self) -> Batch:
        """Remove the entries of the next commit from the queues, and return them."""
        if self._alone and self._unwritten:
            first, self._unwritten = self._unwritten[0], self._unwritten[1:]
            opened, self._opened = self._opened, []
            return Batch([first], (), (), opened)
        self._alone = 0
        entries = [*self._unwritten, *self._encoded()]
        batch = Batch(entries, self._ended, self._expired, self._opened)
        self._facts, self._unwritten, self._ended, self._expired, self._opened = [], [], [], [], []
        return batch

    def _encoded(self) -> list[Entry]:
        """Return the facts as entries. A session with a fact that cannot be encoded is ended."""
        try:
            return entries_of(self._facts)
        except Exception:
            entries = []
            for key in dict.fromkeys(key for key, _, _ in self._facts):
                try:
                    entries += entries_of([fact for fact in self._facts if fact[0] == key])
                except Exception as error:
                    self._lose(key, error)
            return entries

    def _lose(self, key: int, error: BaseException) -> None:
        """End a session with a fact that can never be written, and remove it from the journal."""
        log.error("session %d cannot be kept: a fact of it cannot be written", key, exc_info=error)
        session = next((session for session, known in self._keys.items() if known == key), None)
        self._ended.append(key)
        self._facts = [fact for fact in self._facts if fact[0] != key]
        self._unwritten = [entry for entry in self._unwritten if entry.session != key]
        if session is None:
            return
        del self._keys[session]
        session.lost = JournalFailed(f"session {session.id} cannot be kept: {error}")
        if self.on_lost is not None:
            self.on_lost(session, session.lost)

    def _landed(self, batch: Batch, error: BaseException | None) -> None:
        """Resolve the futures that wait for a commit, and start the next commit. Like `_begin`, it must not raise."""
        flying = list(self._flying or ())
        try:
            self._land(batch, error)
        except Exception as fault:
            waiting = [*flying, *self._failed(batch, fault)]
            self._flying, self._alone = None, 0
            for kept in waiting:
                if not kept.done():
                    kept.set_exception(JournalFailed(f"the journal cannot be written: {fault}"))
            self._go_on()

    def _land(self, batch: Batch, error: BaseException | None) -> None:
        if isinstance(error, LeaseLost):
            self._closed = True
            return  # whoever waits is told nothing, as in `flushed`
        flown, self._flying = self._flying or [], None
        if isinstance(error, self._storage.refusals):
            self._refused(batch, error, flown)
            return
        if error is None:
            self._alone = max(0, self._alone - len(batch.entries))
            if self._failure is not None:
                log.warning("the journal %s is written again", self._storage.name)
                self._failure = None
            if self._alone:  # the waiting futures are resolved after the last entry of the original commit
                self._waiting = [*flown, *self._waiting]
                flown = []
        else:
            flown += self._failed(batch, error)
        for kept in flown:
            if kept.done():
                continue  # whoever waited has gone
            if self._failure is None:
                kept.set_result(None)
            else:
                kept.set_exception(self._failure)
        if not self._closed:
            self._go_on()

    def _refused(self, batch: Batch, error: BaseException, flown: list[asyncio.Future[None]]) -> None:
        """Write the entries of a refused batch one by one, to find those that the storage cannot store."""
        self._unwritten = [*batch.entries, *self._unwritten]
        self._ended = [*batch.ended, *self._ended]
        self._expired = [*batch.expired, *self._expired]
        self._opened = [*batch.opened, *self._opened]
        self._waiting = [*flown, *self._waiting]
        if len(batch.entries) == 1:
            self._alone = max(0, self._alone - 1)
            self._lose(batch.entries[0].session, error)
        else:
            self._alone = len(batch.entries)
        self._begin()

    def _go_on(self) -> None:
        """Sees to the next commit."""
        if self._failure is not None:
            pause = _RETRY_SECONDS
        elif self._alone:
            pause = 0.0
        elif self._busy:
            pause = _GATHER_SECONDS
        elif self._waiting:
            pause = 0.0
        elif self._pending:
            pause = _LINGER_SECONDS
        else:
            return
        self._timer = asyncio.get_running_loop().call_later(pause, self._begin)

    def _failed(self, batch: Batch, error: BaseException) -> list[asyncio.Future[None]]:
        """What was in the commit goes before what came since. Returns who waits for that: they fail as well."""
        if self._failure is None:
            where = self._storage.name
            log.error("the journal %s cannot be written: %s; deferred work is refused until it can", where, error)
        if not isinstance(error, self._storage.failures):
            log.error("a commit failed for a reason of our own", exc_info=error)
        self._failure = JournalFailed(f"the journal cannot be written: {error}")
        self._unwritten = [*batch.entries, *self._unwritten]
        self._ended = [*batch.ended, *self._ended]
        self._expired = [*batch.expired, *self._expired]
        self._opened = [*batch.opened, *self._opened]
        waiting, self._waiting = self._waiting, []
        return waiting

    async def close(self) -> None:
        """Writes what there is, takes nothing more, and gives the storage back. What happens later did not happen."""
        if self._closed:
            return
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                while self._pending or self._flying is not None:
                    await self.flushed()
        except (JournalFailed, TimeoutError) as error:
            why = str(error) or f"the storage took more than {_CLOSE_SECONDS:g} s"
            log.error("the journal's last %d facts are lost: %s", len(self._facts) + len(self._unwritten), why)
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._storage.close()
        except TimeoutError:
            log.error("the journal %s did not close within %g s", self._storage.name, _CLOSE_SECONDS)
