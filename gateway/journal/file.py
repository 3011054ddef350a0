"""The journal's file: one SQLite database in WAL mode, of which this process is the only user.

Every commit is one statement. Python's sqlite3 gives up the interpreter's lock for every row it steps over and has to
wait for it again while the event loop is busy: a thousand rows took seconds. So rows go in as one JSON array that
SQLite takes apart by itself.
"""

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SCHEMA = 1
_APPLICATION = 0x6D796E61
"""`myna`, which tells SQLite's file from other programs' files."""
_STATEMENT_BYTES = 16 << 20
"""At most so much goes into one statement, unless a single row is larger."""
_EXPIRED = 10_000
"""Ids of expired sessions that are kept."""
_VACUUM_PAGES = 2_000
"""Given back to the file system in one go, so that no commit waits long."""

_CREATE = f"""
CREATE TABLE facts (session INTEGER NOT NULL, seq INTEGER NOT NULL, facts TEXT NOT NULL, PRIMARY KEY (session, seq))
    WITHOUT ROWID;
CREATE TABLE expired (at INTEGER PRIMARY KEY AUTOINCREMENT, tenant TEXT NOT NULL, id TEXT NOT NULL);
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {SCHEMA};
"""


class JournalError(Exception):
    """The file cannot be used; the message names it and says what can be done."""


@dataclass(frozen=True)
class Batch:
    """What goes into the file at once: rows as JSON arrays `[session, seq, facts]`, the keys of sessions that ended,
    and tenants and ids of those that expired."""

    rows: Sequence[bytes]
    ended: Sequence[int]
    expired: Sequence[tuple[str, str]]


class JournalFile:
    """Owner of the connection. Its methods block; only one thread may be in them at a time."""

    def __init__(self, path: Path) -> None:
        """Opens the file, makes it if need be, and takes it for this process alone. Raises JournalError."""
        self._path = path
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

    def rows(self) -> Iterator[tuple[int, int, str]]:
        """All there are: session, number of the first fact, and facts, in that order. Raises JournalError."""
        try:
            yield from self._connection.execute("SELECT session, seq, facts FROM facts ORDER BY session, seq")
        except sqlite3.Error as error:
            raise self._damaged(error) from error

    def damaged(self, session: int, seq: int, problem: object) -> JournalError:
        """The error that says so of one row."""
        return self._damaged(f"row {seq} of session {session}: {problem}")

    def expired(self) -> list[tuple[str, str]]:
        """Tenants and ids of sessions that have expired, in that order."""
        return self._connection.execute("SELECT tenant, id FROM expired ORDER BY at").fetchall()

    def commit(self, batch: Batch) -> None:
        """Keeps all of the batch, or raises sqlite3.Error; then it may be given again, kept or not."""
        chunks = list(_chunks(batch.rows))
        if len(chunks) == 1 and not batch.ended:
            self._insert(chunks[0])
            return
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        try:
            for chunk in chunks:
                self._insert(chunk)
            for session in batch.ended:
                execute("DELETE FROM facts WHERE session = ?", (session,))
            self._connection.executemany("INSERT INTO expired (tenant, id) VALUES (?, ?)", batch.expired)
            if batch.expired:
                execute("DELETE FROM expired WHERE at <= (SELECT max(at) FROM expired) - ?", (_EXPIRED,))
            execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                execute("ROLLBACK")
            raise
        with suppress(sqlite3.Error):  # the batch is kept; the space is given back another time
            # a script is stepped through to its end; `execute` would give back a single page
            self._connection.executescript(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})")

    def _insert(self, rows: str) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO facts SELECT value ->> 0, value ->> 1, value -> 2 FROM json_each(?)",
            (rows,),
        )

    def close(self) -> None:
        """Gives the file back."""
        self._connection.close()


def _chunks(rows: Sequence[bytes]) -> Iterator[str]:
    """Rows as JSON arrays of bounded size."""
    begin = size = 0
    for index, row in enumerate(rows):
        if size and size + len(row) > _STATEMENT_BYTES:
            yield _array(rows[begin:index])
            begin, size = index, 0
        size += len(row)
    if rows:
        yield _array(rows[begin:])


def _array(rows: Sequence[bytes]) -> str:
    return (b"[" + b",".join(rows) + b"]").decode()
