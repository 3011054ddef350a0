"""The journal's file: one SQLite database in WAL mode, of which this process is the only user.

It is a log: every commit is one row, the facts of whatever sessions had some. A row a session would take SQLite five
times as long, and Python's sqlite3 gives up the interpreter's lock for every row it steps over and has to wait for it
again while the event loop is busy. What is left of sessions that ended is taken out once it is more than half of a row.
"""

import asyncio
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from gateway.journal.storage import SCHEMA, Batch, Entry, JournalError, Row

_Result = TypeVar("_Result")

_APPLICATION = 0x6D796E61
"""`myna`, which tells SQLite's file from other programs' files."""
_COMMIT_BYTES = 16 << 20
"""At most so much goes into one row, unless the facts of a single session are more."""
_EXPIRED = 10_000
"""Ids of expired sessions that are kept."""
_VACUUM_PAGES = 2_000
"""Given back to the file system in one go, so that no commit waits long."""

_CREATE = f"""
CREATE TABLE commits (id INTEGER PRIMARY KEY, facts TEXT NOT NULL);
CREATE TABLE ended (id INTEGER NOT NULL, session INTEGER NOT NULL, PRIMARY KEY (id, session)) WITHOUT ROWID;
CREATE TABLE expired (at INTEGER PRIMARY KEY AUTOINCREMENT, tenant TEXT NOT NULL, id TEXT NOT NULL);
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {SCHEMA};
"""
"""`ended`: sessions whose facts in that commit count no more."""

_entries_of = msgspec.json.Decoder(list[tuple[int, msgspec.Raw]]).decode


class JournalFile:
    """Owner of the connection, and of where in the file there is what of which session.

    Its methods block; only one thread may be in them at a time. `rows` is read to its end before anything is written.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file, makes it if need be, and takes it for this process alone. Raises JournalError."""
        self._path = path
        self.last_session = 0
        """The highest key that there has been, as far as the file tells."""
        self._next = 1
        self._commits: dict[int, list[int]] = {}
        """By the commit's id: sessions in it that have not ended, and all that are in it."""
        self._held: dict[int, list[int]] = {}
        """Ids of the commits in which a session that has not ended has facts."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # prompts and answers are nobody else's
        except OSError as error:
            raise JournalError(f"the journal {path} cannot be written: {error.strerror}") from error
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1.0)
        try:
            self._open()
        except sqlite3.Error as error:
            self._connection.close()
            raise self._explained(error) from error
        except JournalError:
            self._connection.close()
            raise

    def _open(self) -> None:
        execute = self._connection.execute
        execute("PRAGMA locking_mode = EXCLUSIVE")
        new = self._check()  # first: what is not ours is not to be touched
        execute("PRAGMA auto_vacuum = INCREMENTAL")  # only has a say in a file that is new
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = FULL")  # what is promised outlives the machine, not only the process
        execute("BEGIN IMMEDIATE")
        execute("COMMIT")
        if new:
            self._connection.executescript(f"BEGIN; {_CREATE} COMMIT;")

    def _check(self) -> bool:
        """Whether the file is empty. Raises JournalError if it is not a sound journal that this version can read."""
        execute = self._connection.execute
        application = execute("PRAGMA application_id").fetchone()[0]
        schema = execute("PRAGMA user_version").fetchone()[0]
        if application != _APPLICATION:
            if application or execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
                raise JournalError(f"{self._path} is another program's database, not a journal")
            return True
        if schema > SCHEMA:
            raise JournalError(
                f"the journal {self._path} was written by a newer myna (schema {schema}, this one knows {SCHEMA}); "
                "update myna"
            )
        if schema < SCHEMA:
            raise JournalError(
                f"the journal {self._path} was written by an older myna (schema {schema}, this one knows {SCHEMA}); "
                "move it away to begin anew, or finish what is in it with that version"
            )
        problem = execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise self._damaged(problem)
        return False

    def _explained(self, error: sqlite3.Error) -> JournalError:
        if "locked" in str(error):
            return JournalError(f"the journal {self._path} is in use by another myna")
        if "readonly" in str(error) or "unable to open" in str(error):
            return JournalError(f"the journal {self._path} cannot be written: {error}")
        if isinstance(error, sqlite3.OperationalError):
            return JournalError(f"the journal {self._path} cannot be used: {error}")
        return self._damaged(error)

    def _damaged(self, problem: object) -> JournalError:
        return JournalError(
            f"the journal {self._path} is damaged: {problem}. Move it away to begin anew (its sessions are lost "
            "then), or recover it with `sqlite3 FILE .recover`"
        )

    def rows(self) -> Iterator[Row]:
        """All there are, in order, each named by the commit's id. Raises JournalError."""
        execute = self._connection.execute
        try:
            ended = set(execute("SELECT id, session FROM ended").fetchall())
            for id, facts in execute("SELECT id, facts FROM commits ORDER BY id"):
                try:
                    entries = _entries_of(facts)
                except (msgspec.DecodeError, TypeError, ValueError) as error:  # of another type, or not Unicode
                    raise self.damaged(id, error) from error
                live = [entry for entry in entries if (id, entry[0]) not in ended]
                sessions = {session for session, _ in entries}
                self._keep(id, {session for session, _ in live}, len(sessions))
                self.last_session = max(self.last_session, *sessions, 0)
                yield id, live
        except sqlite3.Error as error:
            raise self._damaged(error) from error

    def _keep(self, id: int, sessions: set[int], total: int) -> None:
        """The commit is in the file, with facts of these sessions, among others that count no more."""
        self._next = max(self._next, id + 1)
        self._commits[id] = [len(sessions), total]
        for session in sessions:
            self._held.setdefault(session, []).append(id)

    def damaged(self, id: int, problem: object) -> JournalError:
        """The error that says so of one row."""
        return self._damaged(f"row {id}: {problem}")

    def expired(self) -> list[tuple[str, str]]:
        """Tenants and ids of sessions that have expired, in that order."""
        try:
            return self._connection.execute("SELECT tenant, id FROM expired ORDER BY at").fetchall()
        except sqlite3.Error as error:
            raise self._damaged(error) from error

    def commit(self, batch: Batch) -> None:
        """Keeps all of the batch, or raises sqlite3.Error; then it may be given again, kept or not, with more."""
        ended = set(batch.ended)
        chunks = list(_chunks([entry for entry in batch.entries if entry.session not in ended]))
        if len(chunks) == 1 and not ended:
            self._insert(0, chunks[0])
        else:
            self._commit(chunks, ended, batch.expired)
        for at, chunk in enumerate(chunks, self._next):
            sessions = {entry.session for entry in chunk}
            self._keep(at, sessions, len(sessions))

    def _commit(self, chunks: Sequence[Sequence[Entry]], ended: set[int], expired: Sequence[tuple[str, str]]) -> None:
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        try:
            for at, chunk in enumerate(chunks):
                self._insert(at, chunk)
            left = self._end(ended)
            self._connection.executemany("INSERT INTO expired (tenant, id) VALUES (?, ?)", expired)
            if expired:
                execute("DELETE FROM expired WHERE at <= (SELECT max(at) FROM expired) - ?", (_EXPIRED,))
            execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                execute("ROLLBACK")
            raise
        for session in ended:
            self._held.pop(session, None)
        for id, counts in left.items():
            if counts is None:
                del self._commits[id]
            else:
                self._commits[id] = counts
        with suppress(sqlite3.Error):  # the batch is kept; the space is given back another time
            # a script is stepped through to its end; `execute` would give back a single page
            self._connection.executescript(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})")

    def _insert(self, at: int, entries: Sequence[Entry]) -> None:
        facts = b"[" + b",".join([entry.facts for entry in entries]) + b"]"
        # replaced: what failed may have been kept all the same, and then comes again under the same id
        self._connection.execute("INSERT OR REPLACE INTO commits VALUES (?, ?)", (self._next + at, facts.decode()))

    def _end(self, ended: set[int]) -> dict[int, list[int] | None]:
        """Takes the sessions out of the commits, or notes there that they have ended. Returns what `_commits` says
        then; None of those that are gone."""
        execute = self._connection.execute
        left: dict[int, list[int] | None] = {}
        for id, gone in Counter(id for session in ended for id in self._held.get(session, ())).items():
            live, total = self._commits[id]
            live -= gone
            if live and 2 * live >= total:
                left[id] = [live, total]
                continue
            execute("DELETE FROM ended WHERE id = ?", (id,))
            if live:
                self._rewrite(id, ended)
                left[id] = [live, live]
            else:
                execute("DELETE FROM commits WHERE id = ?", (id,))
                left[id] = None
        noted = ((id, session) for session in ended for id in self._held.get(session, ()) if _is_mixed(left[id]))
        self._connection.executemany("INSERT OR IGNORE INTO ended VALUES (?, ?)", noted)
        return left

    def _rewrite(self, id: int, ended: set[int]) -> None:
        """Leaves in a commit what counts."""
        (facts,) = self._connection.execute("SELECT facts FROM commits WHERE id = ?", (id,)).fetchone()
        live = [entry for entry in _entries_of(facts) if entry[0] in self._held and entry[0] not in ended]
        text = msgspec.json.encode(live).decode()
        self._connection.execute("UPDATE commits SET facts = ? WHERE id = ?", (text, id))

    def do(self, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
        """What somebody else makes of the file, in tables of their own. No transaction is open before or after."""
        return work(self._connection)

    def close(self) -> None:
        """Gives the file back."""
        self._connection.close()


class FileStorage:
    """A `Storage`: the file, and the thread that writes it."""

    failures = (sqlite3.Error,)
    refusals = (sqlite3.DataError, sqlite3.InterfaceError, OverflowError, UnicodeError)

    def __init__(self, path: Path) -> None:
        """Raises JournalError if the file cannot be used."""
        self.name = str(path)
        self.file = JournalFile(path)
        self._thread = ThreadPoolExecutor(1, "journal")

    def rows(self) -> Iterator[Row]:
        """See `JournalFile.rows`. To be read to its end before anything is written."""
        return self.file.rows()

    def expired(self) -> list[tuple[str, str]]:
        """See `JournalFile.expired`."""
        return self.file.expired()

    def new_key(self) -> int:
        """See `Storage`."""
        self.file.last_session += 1
        return self.file.last_session

    def commit(self, batch: Batch) -> "asyncio.Future[None]":
        """See `Storage`."""
        return asyncio.get_running_loop().run_in_executor(self._thread, self.file.commit, batch)

    def run(self, work: Callable[[sqlite3.Connection], _Result]) -> "asyncio.Future[_Result]":
        """See `JournalFile.do`. In turns with commits."""
        return asyncio.get_running_loop().run_in_executor(self._thread, self.file.do, work)

    def damaged(self, row: int, problem: object) -> JournalError:
        """See `Storage`."""
        return self.file.damaged(row, problem)

    async def close(self) -> None:
        """See `Storage`."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self.file.close)
        self._thread.shutdown()


def _is_mixed(counts: list[int] | None) -> bool:
    """Whether there are facts in a commit that count no more beside some that do."""
    return counts is not None and counts[0] < counts[1]


def _chunks(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    """Entries in groups of bounded size."""
    begin = size = 0
    for index, entry in enumerate(entries):
        if size and size + len(entry.facts) > _COMMIT_BYTES:
            yield entries[begin:index]
            begin, size = index, 0
        size += len(entry.facts)
    if entries:
        yield entries[begin:]
