"""Storage of the ledger in SQLite: a file of its own, so that long queries do not delay the journal."""

import asyncio
import math
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from gateway.accounts.ledger.spend import CallSpend, storable_row, storable_text
from gateway.accounts.ledger.usage_query import SUMS, LedgerError, UsageQuery, UsageSum

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
    tags TEXT NOT NULL,
    tool_calls INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS spend_time ON spend (ended);
CREATE INDEX IF NOT EXISTS spend_key ON spend (key, ended);
CREATE TABLE IF NOT EXISTS spend_days (
    key TEXT NOT NULL,
    day INTEGER NOT NULL,
    tokens INTEGER NOT NULL,
    cost REAL NOT NULL,
    PRIMARY KEY (key, day)
) WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS spend_day AFTER INSERT ON spend BEGIN
    INSERT INTO spend_days VALUES (
        new.key, CAST(new.ended / 86400 AS INTEGER), new.prompt + new.completion, new.cost
    ) ON CONFLICT (key, day) DO UPDATE SET tokens = tokens + excluded.tokens, cost = cost + excluded.cost;
END;
"""
"""`spend_days`: sums of each key and day since 1970, which stay when old rows are deleted, and are fast to add up."""
_ADD_TOOL_CALLS = "ALTER TABLE spend ADD COLUMN tool_calls INTEGER NOT NULL DEFAULT 0"
"""Change of a file of an earlier version. It takes the same time for all files: SQLite changes no row."""
_MAX_IN_MEMORY = 200_000
"""Number of rows of a ledger in memory, about 300 bytes each."""
_BOUND = f"""
CREATE TRIGGER spend_bound AFTER INSERT ON spend BEGIN
    DELETE FROM spend WHERE rowid <= new.rowid - {_MAX_IN_MEMORY};
END;
"""
_INSERT = f"INSERT INTO spend VALUES ({', '.join('?' * 15)}) ON CONFLICT (id) DO NOTHING"
_TOTALS = """
SELECT coalesce(sum(tokens), 0), coalesce(sum(cost), 0.0) FROM (
    SELECT tokens, cost FROM spend_days WHERE key = :key AND day >= :day
    UNION ALL
    SELECT prompt + completion, cost FROM spend WHERE key = :key AND ended >= :since AND ended < :day * 86400.0
)
"""
_GROUP_COLUMNS = {"key": "key", "session": "session", "model": "model", "day": "date(ended, 'unixepoch')"}
_DAY = 86_400
"""Seconds of a day."""
_CHUNK = 1_000
"""Number of rows of one transaction."""
_QUERY_SECONDS = 10.0
"""Longest time of a query, in seconds."""
_PROGRESS_STEPS = 100_000
"""Number of steps of SQLite between two looks at the clock."""


class SqliteLedger:
    """Owner of two connections: one writes, the other reads at the same time. See `LedgerStorage`."""

    def __init__(self, path: Path | None) -> None:
        """`path`: the file, which is created if there is none; None for a ledger in memory. Raises LedgerError."""
        self._writing = ThreadPoolExecutor(1, "ledger")
        try:
            self._writer = _connect(path)
            self._writer.executescript(_CREATE if path is not None else _CREATE + _BOUND)
            _migrate(self._writer)
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
            self._writer.executemany(_INSERT, chunk)

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

    async def totals(self, key: str, since: float) -> tuple[int, float]:
        """Return the tokens and the cost of a key's calls. See `LedgerStorage`."""
        values = {"key": storable_text(key), "since": since, "day": math.ceil(since / _DAY)}
        ((tokens, cost),) = await self._run(self._reading, lambda: self._select(_TOTALS, values))
        return tokens, cost

    def _select(self, statement: str, values: Sequence[object] | Mapping[str, object]) -> list[tuple[Any, ...]]:
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


def _migrate(connection: sqlite3.Connection) -> None:
    """Add the columns that a file of an earlier version lacks."""
    connection.execute("BEGIN IMMEDIATE")  # another process may open the file at the same time
    with connection:
        columns = {row[1] for row in connection.execute("PRAGMA table_info(spend)")}
        if "tool_calls" not in columns:
            connection.execute(_ADD_TOOL_CALLS)


def _connect(path: Path | None) -> sqlite3.Connection:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite's other files get the same permissions
    connection = sqlite3.connect(":memory:" if path is None else path, check_same_thread=False, timeout=5.0)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")  # consistent after a crash of the machine, which may lose rows
    return connection
