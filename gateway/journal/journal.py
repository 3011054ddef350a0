"""The journal: the log of all sessions. One commit runs at a time; facts that arrive meanwhile join the next one."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar

from gateway.graph.errors import GraphError
from gateway.graph.events import Event, Fact, SessionEnded
from gateway.graph.limits import SessionLimits
from gateway.graph.session import Session
from gateway.journal.records import Record, entries_of, record_of, session_record
from gateway.journal.replay import finish_replay, replay
from gateway.journal.storage import Batch, Entry, LeaseLost, NewSession, Row, Storage

log = logging.getLogger("myna.journal")

_MAX_DELAY_SECONDS = 0.05
"""Longest delay of facts that no task waits for, in seconds."""
_GATHER_SECONDS = 0.002
"""Delay of the next commit after a busy one, so that more facts can join it, in seconds."""
_BUSY_WAITERS = 8
"""Number of waiting tasks from which a commit counts as busy."""
_RETRY_SECONDS = 1.0
"""Pause between attempts to write to a storage that fails, in seconds."""
_CLOSE_SECONDS = 10.0
"""Timeout of `close` for the last commits, and for the storage, in seconds."""


class JournalFailed(GraphError):
    """Facts could not be stored."""

    code: ClassVar[str] = "journal_failed"


class Journal:
    """The log of all sessions. See `gateway.graph.events.Log`. Owner of the facts that are not stored yet.

    Facts are recorded on the event loop. A commit that fails loses nothing: its content goes into the next commit, and
    attempts continue. Meanwhile tasks that wait get an error, and `check` rejects new work.

    A fact whose content the storage can never write fails its own session and no other. The journal removes the
    session, and calls `on_lost` with it.
    """

    def __init__(self, storage: Storage, on_lost: Callable[[Session, GraphError], None] | None = None) -> None:
        """`on_lost` ends a session that cannot be stored. It may also be set later."""
        self._storage = storage
        self.on_lost = on_lost
        self._keys: dict[Session, int] = {}
        self._facts: list[tuple[int, int, Record]] = []
        """Session keys, fact numbers and facts that are in no commit yet."""
        self._unwritten: list[Entry] = []
        """Entries of failed commits, older than all of `_facts`."""
        self._opened: list[NewSession] = []
        self._ended: list[int] = []
        self._expired: list[tuple[str, str]] = []
        self._next_waiters: list[asyncio.Future[None]] = []
        """Futures of tasks that wait for facts that are in no commit yet."""
        self._commit_waiters: list[asyncio.Future[None]] | None = None
        """Futures of tasks that wait for the running commit; None if none runs."""
        self._single_commits = 0
        """Number of unwritten entries that are committed one by one, to find those that cannot be written."""
        self._busy = False
        """Whether many tasks waited for the last commit."""
        self._timer: asyncio.TimerHandle | None = None
        self._failure: JournalFailed | None = None
        self._closed = False

    def restore(self, rows: Iterable[Row], limits: SessionLimits) -> list[Session]:
        """Return the stored sessions, oldest first. The caller resumes their unfinished calls.

        Raises JournalError if a row cannot be read.
        """
        sessions = []
        last: dict[int, int] = {}
        """Id of the last row of each session, by session key."""

        def record_last_rows() -> Iterator[Row]:
            for id, entries in rows:
                last.update((key, id) for key, _ in entries)
                yield id, entries

        for key, session in replay(record_last_rows(), limits, self, self._storage.damage_error).items():
            self._keys[session] = key
            try:
                finish_replay(session)
            except Exception as error:  # as in `replay`: rows that contradict each other may cause any error
                problem = f"session {key}: {type(error).__name__}: {error}"
                raise self._storage.damage_error(last[key], problem) from error
            sessions.append(session)
        return sessions

    # FactSink

    def check(self) -> None:
        """Raise JournalFailed if new work cannot be stored now. See `FactSink.check`."""
        if self._closed:
            raise JournalFailed("the server is stopping")
        if self._failure is not None:
            raise self._failure

    def open_session(self, session: Session) -> None:
        """Record a new session. See `FactSink.open_session`."""
        if self._closed:
            return
        key = self._keys[session] = self._storage.new_key()
        self._opened.append(NewSession(key, session.tenant, session.id))
        self._facts.append((key, 0, session_record(session)))
        self._schedule()

    def write(self, session: Session, fact: Fact) -> None:
        """Record a fact. See `FactSink.write`."""
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
                self._facts.append((key, session.event_log.fact_count, record_of(fact)))
            except Exception as error:  # end the session later: it is in the middle of a change now
                asyncio.get_running_loop().call_soon(self._drop_session, key, error)
        self._schedule()

    def _schedule(self) -> None:
        if self._commit_waiters is None and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_MAX_DELAY_SECONDS, self._start_commit)

    @property
    def _has_work(self) -> bool:
        return bool(self._facts or self._ended or self._unwritten)

    async def flush(self) -> None:
        """Wait until all facts are stored. See `FactSink.flush`. Raises JournalFailed if the storage fails.

        Once the journal is closed, this never returns: later events happen again after the next start, perhaps in
        another way, so no client may learn about them.
        """
        loop = asyncio.get_running_loop()
        if self._closed:
            await loop.create_future()
        self.check()
        if self._has_work:
            waiters = self._next_waiters
            if self._commit_waiters is None and not self._busy:
                loop.call_soon(self._start_commit)  # after the other callbacks of this turn of the loop
        elif self._commit_waiters is not None:
            waiters = self._commit_waiters
        else:
            return
        # one future for each task: a shared one would need a shield, which costs more
        future = loop.create_future()
        waiters.append(future)
        await future

    # commits

    def _start_commit(self) -> None:
        """Start the next commit. It must not raise: no other code would start the next one."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._commit_waiters is not None or not self._has_work:
            self._busy = False
            return
        batch = self._next_batch()
        self._commit_waiters, self._next_waiters = self._next_waiters, []
        self._busy = len(self._commit_waiters) >= _BUSY_WAITERS
        try:
            commit = self._storage.commit(batch)
        except Exception as error:  # the event loop would only log it
            self._commit_done(batch, error)
        else:
            commit.add_done_callback(lambda commit: self._commit_done(batch, commit.exception()))

    def _next_batch(self) -> Batch:
        """Remove the content of the next commit from the queues, and return it."""
        if self._single_commits and self._unwritten:
            first, self._unwritten = self._unwritten[0], self._unwritten[1:]
            opened, self._opened = self._opened, []
            return Batch([first], (), (), opened)
        self._single_commits = 0
        entries = [*self._unwritten, *self._encode()]
        batch = Batch(entries, self._ended, self._expired, self._opened)
        self._facts, self._unwritten, self._ended, self._expired, self._opened = [], [], [], [], []
        return batch

    def _encode(self) -> list[Entry]:
        """Return the facts as entries. A session with a fact that cannot be encoded is ended."""
        try:
            return entries_of(self._facts)
        except Exception:
            entries = []
            for key in dict.fromkeys(key for key, _, _ in self._facts):
                try:
                    entries += entries_of([fact for fact in self._facts if fact[0] == key])
                except Exception as error:
                    self._drop_session(key, error)
            return entries

    def _drop_session(self, key: int, error: BaseException) -> None:
        """End a session with a fact that can never be written, and remove it from the journal."""
        log.error("session %d cannot be stored: one of its facts cannot be written", key, exc_info=error)
        session = next((session for session, known in self._keys.items() if known == key), None)
        self._ended.append(key)
        self._facts = [fact for fact in self._facts if fact[0] != key]
        self._unwritten = [entry for entry in self._unwritten if entry.session != key]
        if session is None:
            return
        del self._keys[session]
        session.event_log.error = JournalFailed(f"session {session.id} cannot be stored: {error}")
        if self.on_lost is not None:
            self.on_lost(session, session.event_log.error)

    def _commit_done(self, batch: Batch, error: BaseException | None) -> None:
        """Resolve the futures that wait for a commit, and start the next commit. Like `_start_commit`, it must not
        raise."""
        waiters = list(self._commit_waiters or ())
        try:
            self._finish_commit(batch, error)
        except Exception as internal_error:
            waiting = [*waiters, *self._requeue(batch, internal_error)]
            self._commit_waiters, self._single_commits = None, 0
            for future in waiting:
                if not future.done():
                    future.set_exception(JournalFailed(f"the journal cannot be written: {internal_error}"))
            self._schedule_next()

    def _finish_commit(self, batch: Batch, error: BaseException | None) -> None:
        if isinstance(error, LeaseLost):
            self._closed = True
            return  # the waiting futures stay unresolved, as in `flush`
        waiters, self._commit_waiters = self._commit_waiters or [], None
        if isinstance(error, self._storage.refusals):
            self._retry_one_by_one(batch, error, waiters)
            return
        if error is None:
            self._single_commits = max(0, self._single_commits - len(batch.entries))
            if self._failure is not None:
                log.warning("the journal %s can be written again", self._storage.name)
                self._failure = None
            if self._single_commits:  # the waiting futures are resolved after the last entry of the original commit
                self._next_waiters = [*waiters, *self._next_waiters]
                waiters = []
        else:
            waiters += self._requeue(batch, error)
        for future in waiters:
            if future.done():
                continue  # the waiting task was cancelled
            if self._failure is None:
                future.set_result(None)
            else:
                future.set_exception(self._failure)
        if not self._closed:
            self._schedule_next()

    def _retry_one_by_one(self, batch: Batch, error: BaseException, waiters: list[asyncio.Future[None]]) -> None:
        """Write the entries of a refused batch one by one, to find those that the storage cannot store."""
        self._unwritten = [*batch.entries, *self._unwritten]
        self._ended = [*batch.ended, *self._ended]
        self._expired = [*batch.expired, *self._expired]
        self._opened = [*batch.opened, *self._opened]
        self._next_waiters = [*waiters, *self._next_waiters]
        if len(batch.entries) == 1:
            self._single_commits = max(0, self._single_commits - 1)
            self._drop_session(batch.entries[0].session, error)
        else:
            self._single_commits = len(batch.entries)
        self._start_commit()

    def _schedule_next(self) -> None:
        """Schedule the next commit, if there is anything to write."""
        if self._failure is not None:
            pause = _RETRY_SECONDS
        elif self._single_commits:
            pause = 0.0
        elif self._busy:
            pause = _GATHER_SECONDS
        elif self._next_waiters:
            pause = 0.0
        elif self._has_work:
            pause = _MAX_DELAY_SECONDS
        else:
            return
        self._timer = asyncio.get_running_loop().call_later(pause, self._start_commit)

    def _requeue(self, batch: Batch, error: BaseException) -> list[asyncio.Future[None]]:
        """Put the content of a failed commit before later facts. Return the futures of tasks that wait for those: they
        fail as well."""
        if self._failure is None:
            where = self._storage.name
            log.error("the journal %s cannot be written: %s; deferred calls are rejected until then", where, error)
        if not isinstance(error, self._storage.failures):
            log.error("a commit failed with an internal error", exc_info=error)
        self._failure = JournalFailed(f"the journal cannot be written: {error}")
        self._unwritten = [*batch.entries, *self._unwritten]
        self._ended = [*batch.ended, *self._ended]
        self._expired = [*batch.expired, *self._expired]
        self._opened = [*batch.opened, *self._opened]
        waiting, self._next_waiters = self._next_waiters, []
        return waiting

    async def close(self) -> None:
        """Write the remaining facts, and close the storage. Later facts are dropped."""
        if self._closed:
            return
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                while self._has_work or self._commit_waiters is not None:
                    await self.flush()
        except (JournalFailed, TimeoutError) as error:
            reason = str(error) or f"the storage took more than {_CLOSE_SECONDS:g} s"
            log.error("the journal's last %d facts are lost: %s", len(self._facts) + len(self._unwritten), reason)
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._storage.close()
        except TimeoutError:
            log.error("the journal %s did not close within %g s", self._storage.name, _CLOSE_SECONDS)
