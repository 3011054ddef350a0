"""The journal in a file: an SQLite database in WAL mode, which only this process uses.

It is a log: each commit is one row with the facts of several sessions. With one row for each session, SQLite would take
five times as long, and Python's sqlite3 releases the interpreter's lock for every row that it visits and must wait for
it again while the event loop is busy. Facts of ended sessions are removed once they are more than half of a row.
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

from gateway.journal.storage import READABLE_SCHEMAS, SCHEMA, Batch, Entry, JournalError, Row

_Result = TypeVar("_Result")

_APPLICATION_ID = 0x6D796E61
"""The bytes `myna`, which distinguish the file from other programs' SQLite files."""
_COMMIT_BYTES = 16 << 20
"""Maximum size of a row, in bytes, unless the facts of a single session are larger."""
_MAX_EXPIRED = 10_000
"""Number of expired session ids that are stored."""
_VACUUM_PAGES = 2_000
"""Number of pages that are returned to the file system at a time, so that no commit waits long."""

_CREATE = f"""
CREATE TABLE commits (id INTEGER PRIMARY KEY, facts TEXT NOT NULL);
CREATE TABLE ended (id INTEGER NOT NULL, session INTEGER NOT NULL, PRIMARY KEY (id, session)) WITHOUT ROWID;
CREATE TABLE expired (at INTEGER PRIMARY KEY AUTOINCREMENT, tenant TEXT NOT NULL, id TEXT NOT NULL);
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {SCHEMA};
"""
"""`ended`: sessions whose facts in that commit are invalid."""

_decode_entries = msgspec.json.Decoder(list[tuple[int, msgspec.Raw]]).decode


class JournalFile:
    """Owner of the connection, and of the index that says which commits contain which sessions.

    Its methods block. Only one thread may use it at a time. Read `rows` to its end before the first commit.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, create it if there is none, and lock it for this process. Raises JournalError."""
        self._path = path
        self.last_session = 0
        """Highest session key in the file."""
        self._next = 1
        self._commits: dict[int, list[int]] = {}
        """Numbers of sessions in each commit, by commit id: those that have not ended, and all."""
        self._commits_of_session: dict[int, list[int]] = {}
        """Ids of the commits with facts of each session that has not ended, by session key."""
        self._has_older_schema = False
        """Whether the file is marked with an older schema: it has no newer records yet."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # prompts and answers are private
        except OSError as error:
            raise JournalError(f"the journal {path} cannot be written: {error.strerror}") from error
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1.0)
        try:
            self._open()
        except sqlite3.Error as error:
            self._connection.close()
            raise self._error_of(error) from error
        except JournalError:
            self._connection.close()
            raise

    def _open(self) -> None:
        execute = self._connection.execute
        execute("PRAGMA locking_mode = EXCLUSIVE")
        new = self._check_schema()  # first, because another program's file must not be changed
        execute("PRAGMA auto_vacuum = INCREMENTAL")  # has an effect in a new file only
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = FULL")  # stored facts survive a crash of the machine, not only of the process
        execute("BEGIN IMMEDIATE")
        execute("COMMIT")
        if new:
            self._connection.executescript(f"BEGIN; {_CREATE} COMMIT;")

    def _check_schema(self) -> bool:
        """Return whether the file is empty. Raises JournalError if it is not a valid journal of this version."""
        execute = self._connection.execute
        application = execute("PRAGMA application_id").fetchone()[0]
        schema = execute("PRAGMA user_version").fetchone()[0]
        if application != _APPLICATION_ID:
            if application or execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
                raise JournalError(f"{self._path} is a database of another program, not a journal")
            return True
        if schema > SCHEMA:
            raise JournalError(
                f"the journal {self._path} was written by a newer myna (schema {schema}; this one supports {SCHEMA}); "
                "update myna"
            )
        if schema not in READABLE_SCHEMAS:
            raise JournalError(
                f"the journal {self._path} was written by an older myna (schema {schema}; this one supports {SCHEMA}); "
                "move it away to start with an empty journal, or finish its sessions with that version"
            )
        self._has_older_schema = schema != SCHEMA
        problem = execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise self._damage_error(problem)
        return False

    def _error_of(self, error: sqlite3.Error) -> JournalError:
        if "locked" in str(error):
            return JournalError(
                f"the journal {self._path} is in use: another myna runs already. Stop it, or choose another "
                "--port and --journal"
            )
        if "readonly" in str(error) or "unable to open" in str(error):
            return JournalError(f"the journal {self._path} cannot be written: {error}")
        if isinstance(error, sqlite3.OperationalError):
            return JournalError(f"the journal {self._path} cannot be used: {error}")
        return self._damage_error(error)

    def _damage_error(self, problem: object) -> JournalError:
        return JournalError(
            f"the journal {self._path} is damaged: {problem}. Move it away to start with an empty journal (its "
            "sessions are lost), or recover it with `sqlite3 FILE .recover`"
        )

    def rows(self) -> Iterator[Row]:
        """Yield all rows in order, each with its commit id. Raises JournalError."""
        execute = self._connection.execute
        try:
            ended = set(execute("SELECT id, session FROM ended").fetchall())
            for id, facts in execute("SELECT id, facts FROM commits ORDER BY id"):
                try:
                    entries = _decode_entries(facts)
                except (msgspec.DecodeError, TypeError, ValueError) as error:  # another type, or not Unicode
                    raise self.damage_error(id, error) from error
                live = [entry for entry in entries if (id, entry[0]) not in ended]
                sessions = {session for session, _ in entries}
                self._index_commit(id, {session for session, _ in live}, len(sessions))
                self.last_session = max(self.last_session, *sessions, 0)
                yield id, live
        except sqlite3.Error as error:
            raise self._damage_error(error) from error

    def _index_commit(self, id: int, sessions: set[int], total: int) -> None:
        """Add a commit to the index. `sessions`: those with valid facts in it; `total`: number of all sessions in
        it."""
        self._next = max(self._next, id + 1)
        self._commits[id] = [len(sessions), total]
        for session in sessions:
            self._commits_of_session.setdefault(session, []).append(id)

    def damage_error(self, id: int, problem: object) -> JournalError:
        """Return the error for a damaged row."""
        return self._damage_error(f"row {id}: {problem}")

    def expired(self) -> list[tuple[str, str]]:
        """Return tenants and ids of expired sessions, the first expired one first."""
        try:
            return self._connection.execute("SELECT tenant, id FROM expired ORDER BY at").fetchall()
        except sqlite3.Error as error:
            raise self._damage_error(error) from error

    def commit(self, batch: Batch) -> None:
        """Store all of the batch, or raise sqlite3.Error. After an error the batch may be committed again, with later
        facts, whether it was stored or not."""
        if self._has_older_schema:
            self._connection.execute(f"PRAGMA user_version = {SCHEMA}")  # older versions cannot read the new records
            self._has_older_schema = False
        ended = set(batch.ended)
        chunks = list(_split([entry for entry in batch.entries if entry.session not in ended]))
        if len(chunks) == 1 and not ended:
            self._insert(0, chunks[0])
        else:
            self._commit(chunks, ended, batch.expired)
        for id, chunk in enumerate(chunks, self._next):
            sessions = {entry.session for entry in chunk}
            self._index_commit(id, sessions, len(sessions))

    def _commit(self, chunks: Sequence[Sequence[Entry]], ended: set[int], expired: Sequence[tuple[str, str]]) -> None:
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        try:
            for offset, chunk in enumerate(chunks):
                self._insert(offset, chunk)
            remaining = self._remove_ended(ended)
            self._connection.executemany("INSERT INTO expired (tenant, id) VALUES (?, ?)", expired)
            if expired:
                execute("DELETE FROM expired WHERE at <= (SELECT max(at) FROM expired) - ?", (_MAX_EXPIRED,))
            execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                execute("ROLLBACK")
            raise
        for session in ended:
            self._commits_of_session.pop(session, None)
        for id, counts in remaining.items():
            if counts is None:
                del self._commits[id]
            else:
                self._commits[id] = counts
        with suppress(sqlite3.Error):  # the batch is stored; the space can be returned another time
            # `executescript` runs the pragma to its end; `execute` would return a single page
            self._connection.executescript(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})")

    def _insert(self, offset: int, entries: Sequence[Entry]) -> None:
        facts = b"[" + b",".join([entry.facts for entry in entries]) + b"]"
        # REPLACE: a commit that failed may have been stored, and then it is repeated with the same id
        self._connection.execute("INSERT OR REPLACE INTO commits VALUES (?, ?)", (self._next + offset, facts.decode()))

    def _remove_ended(self, ended: set[int]) -> dict[int, list[int] | None]:
        """Remove the ended sessions from the commits, or mark them there as ended. Return the new counts of `_commits`;
        None for commits that were deleted."""
        execute = self._connection.execute
        remaining: dict[int, list[int] | None] = {}
        for id, removed in Counter(id for session in ended for id in self._commits_of_session.get(session, ())).items():
            live, total = self._commits[id]
            live -= removed
            if live and 2 * live >= total:
                remaining[id] = [live, total]
                continue
            execute("DELETE FROM ended WHERE id = ?", (id,))
            if live:
                self._rewrite(id, ended)
                remaining[id] = [live, live]
            else:
                execute("DELETE FROM commits WHERE id = ?", (id,))
                remaining[id] = None
        ended_rows = (
            (id, session)
            for session in ended
            for id in self._commits_of_session.get(session, ())
            if _is_mixed(remaining[id])
        )
        self._connection.executemany("INSERT OR IGNORE INTO ended VALUES (?, ?)", ended_rows)
        return remaining

    def _rewrite(self, id: int, ended: set[int]) -> None:
        """Remove the facts of ended sessions from a commit."""
        (facts,) = self._connection.execute("SELECT facts FROM commits WHERE id = ?", (id,)).fetchone()
        live = [
            entry for entry in _decode_entries(facts) if entry[0] in self._commits_of_session and entry[0] not in ended
        ]
        text = msgspec.json.encode(live).decode()
        self._connection.execute("UPDATE commits SET facts = ? WHERE id = ?", (text, id))

    def run(self, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
        """Call `work` with the connection, for tables outside the journal. No transaction is open before or after."""
        return work(self._connection)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


class FileStorage:
    """Storage in a file. Owner of the thread that writes it."""

    failures = (sqlite3.Error,)
    refusals = (sqlite3.DataError, sqlite3.InterfaceError, OverflowError, UnicodeError)

    def __init__(self, path: Path) -> None:
        """Open or create the file. Raises JournalError if it cannot be used."""
        self.name = str(path)
        self.file = JournalFile(path)
        self._thread = ThreadPoolExecutor(1, "journal")

    def rows(self) -> Iterator[Row]:
        """Yield all rows. See `JournalFile.rows`. Read them to the end before the first commit."""
        return self.file.rows()

    def expired(self) -> list[tuple[str, str]]:
        """Return the expired sessions. See `JournalFile.expired`."""
        return self.file.expired()

    def new_key(self) -> int:
        """Return a new session key. See `Storage.new_key`."""
        self.file.last_session += 1
        return self.file.last_session

    def commit(self, batch: Batch) -> "asyncio.Future[None]":
        """Store a batch. See `Storage.commit`."""
        return asyncio.get_running_loop().run_in_executor(self._thread, self.file.commit, batch)

    def run(self, work: Callable[[sqlite3.Connection], _Result]) -> "asyncio.Future[_Result]":
        """Call `work` with the connection, in turns with commits. See `JournalFile.run`."""
        return asyncio.get_running_loop().run_in_executor(self._thread, self.file.run, work)

    def damage_error(self, row: int, problem: object) -> JournalError:
        """Return the error for a damaged row. See `Storage.damage_error`."""
        return self.file.damage_error(row, problem)

    async def close(self) -> None:
        """Close the file and end the thread. See `Storage.close`."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self.file.close)
        self._thread.shutdown()


def _is_mixed(counts: list[int] | None) -> bool:
    """Return whether a commit contains facts of ended sessions and of others."""
    return counts is not None and counts[0] < counts[1]


def _split(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    """Yield the entries in groups of limited size."""
    begin = size = 0
    for index, entry in enumerate(entries):
        if size and size + len(entry.facts) > _COMMIT_BYTES:
            yield entries[begin:index]
            begin, size = index, 0
        size += len(entry.facts)
    if entries:
        yield entries[begin:]
