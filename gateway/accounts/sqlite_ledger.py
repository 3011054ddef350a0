"""Storage of the ledger in SQLite: a file of its own, so that long queries do not delay the journal."""

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from gateway.accounts.spend import CallSpend, storable_row, storable_text
from gateway.accounts.usage_query import SUMS, LedgerError, UsageQuery, UsageSum

_Result = TypeVar("_Result")

_CREATE = """
CREATE TABLE IF NOT EXISTS spend (
    id TEXT PRIMARY KEY,
    ended REAL NOT NULL,
    key TEXT NOT NULL,
    session TEXT NOT NULL,
    model TEXT NOT NULL,
    engine TEXT NOT NULL,
    state TEXT NOT NULL,
    prompt INTEGER NOT NULL,
    cached INTEGER NOT NULL,
    completion INTEGER NOT NULL,
    reasoning INTEGER NOT NULL,
    lost INTEGER NOT NULL,
    cost REAL NOT NULL,
    tags TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS spend_time ON spend (ended);
CREATE INDEX IF NOT EXISTS spend_key ON spend (key, ended);
"""
_GROUP_COLUMNS = {"key": "key", "session": "session", "model": "model", "day": "date(ended, 'unixepoch')"}
_CHUNK = 1_000
"""Number of rows of one transaction."""
_MAX_MEMORY_ROWS = 1_000_000
"""Maximum number of rows of a ledger in memory, some 300 bytes each. The oldest ones are deleted."""
_QUERY_SECONDS = 10.0
"""Longest time of a query, in seconds."""
_PROGRESS_STEPS = 100_000
"""Number of steps of SQLite between two looks at the clock."""


class SqliteLedger:
    """Owner of two connections: one writes, the other reads at the same time. See `LedgerStorage`."""

    def __init__(self, path: Path | None) -> None:
        """`path`: the file, which is created if there is none; None for a ledger in memory. Raises LedgerError."""
        self._is_in_memory = path is None
        self._writing = ThreadPoolExecutor(1, "ledger")
        try:
            self._writer = _connect(path)
            self._writer.executescript(_CREATE)
            self._reader, self._reading = self._writer, self._writing
            if path is not None:
                path.chmod(0o600)  # a file of an earlier version
                self._reader, self._reading = _connect(path), ThreadPoolExecutor(1, "ledger reader")
        except (sqlite3.Error, OSError) as error:
            raise LedgerError(f"the ledger {path} cannot be used: {error}") from error

    async def insert(self, rows: Iterable[CallSpend]) -> None:
        """Store rows. See `LedgerStorage`."""
        await self._run(self._writing, lambda: self._insert(rows))

    def _insert(self, rows: Iterable[CallSpend]) -> None:
        chunk: list[tuple[object, ...]] = []
        for row in rows:
            chunk.append(storable_row(row))
            if len(chunk) == _CHUNK:
                self._insert_chunk(chunk)
                chunk.clear()
        self._insert_chunk(chunk)

    def _insert_chunk(self, chunk: list[tuple[object, ...]]) -> None:
        with self._writer:
            self._writer.executemany(f"INSERT OR IGNORE INTO spend VALUES ({', '.join('?' * 14)})", chunk)
            if self._is_in_memory:
                oldest = "DELETE FROM spend WHERE rowid <= (SELECT max(rowid) FROM spend) - ?"
                self._writer.execute(oldest, (_MAX_MEMORY_ROWS,))

    async def delete_before(self, when: float, limit: int) -> int:
        """Delete old rows. See `LedgerStorage`."""

        def delete() -> int:
            statement = "DELETE FROM spend WHERE id IN (SELECT id FROM spend WHERE ended < ? LIMIT ?)"
            with self._writer:
                return self._writer.execute(statement, (when, limit)).rowcount

        return await self._run(self._writing, delete)

    async def sums(self, query: UsageQuery) -> list[UsageSum]:
        """Answer a query. See `LedgerStorage`."""
        columns = [_GROUP_COLUMNS[group] for group in query.groups]
        conditions, values = ["ended >= ?", "ended < ?"], list[object]((query.start, query.end))
        for name in ("key", "session", "model"):
            wanted = getattr(query, name)
            if wanted is not None:
                conditions.append(f"{name} = ?")
                values.append(storable_text(wanted))
        grouping = f"GROUP BY {', '.join(columns)} ORDER BY {', '.join(columns)}" if columns else ""
        statement = (
            f"SELECT {', '.join([*columns, SUMS])} FROM spend WHERE {' AND '.join(conditions)} {grouping} "
            "LIMIT ? OFFSET ?"
        )
        count = len(columns)
        rows = await self._run(self._reading, lambda: self._select(statement, (*values, query.limit, query.offset)))
        return [UsageSum(row[:count], *row[count:]) for row in rows]

    def _select(self, statement: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        deadline = time.monotonic() + _QUERY_SECONDS
        self._reader.set_progress_handler(lambda: time.monotonic() > deadline, _PROGRESS_STEPS)
        try:
            return self._reader.execute(statement, values).fetchall()
        except sqlite3.OperationalError as error:
            if time.monotonic() > deadline:
                raise LedgerError("the query takes too long; ask for a shorter time or fewer groups") from error
            raise
        finally:
            self._reader.set_progress_handler(None, 0)

    async def close(self) -> None:
        """Close the file."""
        await self._run(self._writing, self._writer.close)
        if self._reader is not self._writer:
            await self._run(self._reading, self._reader.close)
        for thread in {self._writing, self._reading}:
            thread.shutdown()

    async def _run(self, thread: ThreadPoolExecutor, work: Callable[[], _Result]) -> _Result:
        try:
            return await asyncio.get_running_loop().run_in_executor(thread, work)
        except sqlite3.Error as error:
            raise LedgerError(f"the ledger cannot be used: {error}") from error


def _connect(path: Path | None) -> sqlite3.Connection:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite's other files get the same permissions
    connection = sqlite3.connect(":memory:" if path is None else path, check_same_thread=False, timeout=5.0)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")  # consistent after a crash of the machine, which may lose rows
    return connection
