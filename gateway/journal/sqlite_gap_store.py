"""Learned durations of tools in SQLite, in the journal's file."""

import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from gateway.journal.gap_store import (
    KEPT_SECONDS,
    MAX_ROWS,
    MAX_ROWS_OF_TENANT,
    GapRow,
    GapStoreError,
    fair_share,
    merged_rows,
)
from gateway.programs.tool_gaps import EndedGap

if TYPE_CHECKING:
    from gateway.journal.sqlite import FileStorage

_Result = TypeVar("_Result")

_CREATE = """
CREATE TABLE IF NOT EXISTS tool_gaps (
    tenant TEXT NOT NULL, word TEXT NOT NULL, updated REAL NOT NULL, gaps TEXT NOT NULL, PRIMARY KEY (tenant, word)
) WITHOUT ROWID
"""
_DELETE_OLD = "DELETE FROM tool_gaps WHERE abs(updated - ?) > ?"
_FORGET = """
DELETE FROM tool_gaps WHERE (tenant, word) IN (
    SELECT tenant, word FROM (
        SELECT tenant, word, row_number() OVER (PARTITION BY tenant ORDER BY updated DESC) AS number FROM tool_gaps
    ) WHERE number > ?
)
"""
_FORGET_OLDEST = """
DELETE FROM tool_gaps WHERE (tenant, word) IN (
    SELECT tenant, word FROM tool_gaps ORDER BY updated DESC LIMIT -1 OFFSET ?
)
"""


class SqliteGapStore:
    """Storage of gaps in SQLite. Only this process uses it. See `GapStore`."""

    def __init__(self, storage: "FileStorage") -> None:
        self._storage = storage

    async def load(self, now: float) -> Sequence[GapRow]:
        """Return all rows. See `GapStore.load`."""

        def load(connection: sqlite3.Connection) -> list[GapRow]:
            connection.execute(_CREATE)
            connection.execute(_DELETE_OLD, (now, KEPT_SECONDS))
            rows = connection.execute(
                "SELECT tenant, word, updated, gaps FROM tool_gaps ORDER BY updated DESC LIMIT ?", (MAX_ROWS,)
            )
            return [GapRow(*row) for row in rows]

        return await self._run(load)

    async def add(self, gaps: Sequence[EndedGap]) -> None:
        """Add gaps. See `GapStore.add`."""

        def add(connection: sqlite3.Connection) -> None:
            connection.execute("BEGIN IMMEDIATE")
            try:
                stored: dict[tuple[str, str], str] = {}
                for key in {(gap.tenant, gap.word) for gap in gaps}:
                    row = connection.execute("SELECT gaps FROM tool_gaps WHERE tenant = ? AND word = ?", key).fetchone()
                    if row is not None:
                        stored[key] = row[0]
                rows = merged_rows(gaps, stored, time.time())
                connection.executemany("INSERT OR REPLACE INTO tool_gaps VALUES (?, ?, ?, ?)", rows)
                _forget_excess(connection)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

        if gaps:
            await self._run(add)

    async def forget(self, tenants: Sequence[str]) -> None:
        """Delete the rows of tenants. See `GapStore.forget`."""

        def forget(connection: sqlite3.Connection) -> None:
            for tenant in tenants:
                connection.execute("DELETE FROM tool_gaps WHERE tenant = ?", (tenant,))

        await self._run(forget)

    async def _run(self, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
        try:
            return await self._storage.run(work)
        except (sqlite3.Error, RuntimeError) as error:  # RuntimeError: the thread has ended, because the server stops
            raise GapStoreError(f"the durations of tools cannot be stored or read now: {error}") from error


def _forget_excess(connection: sqlite3.Connection) -> None:
    """Delete the oldest rows of tenants with too many."""
    counts = [count for (count,) in connection.execute("SELECT count(*) FROM tool_gaps GROUP BY tenant")]
    share = min(MAX_ROWS_OF_TENANT, fair_share(counts, MAX_ROWS))
    if max(counts, default=0) > share:
        connection.execute(_FORGET, (share,))
    if len(counts) > MAX_ROWS:
        connection.execute(_FORGET_OLDEST, (MAX_ROWS,))
