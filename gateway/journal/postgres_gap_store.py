"""Learned durations of tools in PostgreSQL, which all gateways share.

Each gateway adds its own durations to the rows, and reads those of all gateways when it starts.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

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
    from gateway.journal.postgres import PostgresStorage

_LOCK = 0x6D796E67
"""The bytes `myng`. Key of the lock that an addition holds, so that none overwrites another one."""
_CREATE = """
CREATE TABLE IF NOT EXISTS myna_tool_gaps (
    tenant text NOT NULL,
    word text NOT NULL,
    updated double precision NOT NULL,
    gaps text NOT NULL,
    PRIMARY KEY (tenant, word)
)
"""
_DELETE_OLD = "DELETE FROM myna_tool_gaps WHERE abs(updated - $1) > $2"
_SELECT = """
SELECT tenant, word, gaps FROM myna_tool_gaps JOIN unnest($1::text[], $2::text[]) AS wanted (tenant, word)
USING (tenant, word)
"""
_UPSERT = """
INSERT INTO myna_tool_gaps SELECT * FROM unnest($1::text[], $2::text[], $3::float8[], $4::text[])
ON CONFLICT (tenant, word) DO UPDATE SET updated = excluded.updated, gaps = excluded.gaps
"""
_FORGET = """
DELETE FROM myna_tool_gaps WHERE (tenant, word) IN (
    SELECT tenant, word FROM (
        SELECT tenant, word, row_number() OVER (PARTITION BY tenant ORDER BY updated DESC) AS number
        FROM myna_tool_gaps
    ) AS numbered WHERE number > $1
)
"""
_FORGET_OLDEST = """
DELETE FROM myna_tool_gaps WHERE (tenant, word) IN (
    SELECT tenant, word FROM myna_tool_gaps ORDER BY updated DESC OFFSET $1
)
"""


class PostgresGapStore:
    """Storage of the gaps of all gateways. See `GapStore`."""

    def __init__(self, storage: "PostgresStorage") -> None:
        self._storage = storage

    async def load(self, now: float) -> Sequence[GapRow]:
        """Return all rows. See `GapStore.load`."""
        select = "SELECT tenant, word, updated, gaps FROM myna_tool_gaps ORDER BY updated DESC LIMIT $1"
        async with self._errors():
            async with self._storage.schema_transaction() as connection:
                await connection.execute(_CREATE)
            async with self._change() as connection:
                await connection.execute(_DELETE_OLD, now, KEPT_SECONDS)
                return [GapRow(*row) for row in await connection.fetch(select, MAX_ROWS)]

    async def add(self, gaps: Sequence[EndedGap]) -> None:
        """Add gaps. See `GapStore.add`."""
        if not gaps:
            return
        keys = list({(gap.tenant, gap.word) for gap in gaps})
        async with self._errors(), self._change() as connection:
            found = await connection.fetch(_SELECT, *_columns(keys))
            stored = {(row["tenant"], row["word"]): row["gaps"] for row in found}
            rows = await asyncio.to_thread(merged_rows, gaps, stored, time.time())  # 0.3 s for all rows
            await connection.execute(_UPSERT, *_columns(rows))
            counts = await connection.fetch("SELECT count(*) AS count FROM myna_tool_gaps GROUP BY tenant")
            share = min(MAX_ROWS_OF_TENANT, fair_share([row["count"] for row in counts], MAX_ROWS))
            if any(row["count"] > share for row in counts):
                await connection.execute(_FORGET, share)
            if len(counts) > MAX_ROWS:
                await connection.execute(_FORGET_OLDEST, MAX_ROWS)

    async def forget(self, tenants: Sequence[str]) -> None:
        """Delete the rows of tenants. See `GapStore.forget`."""
        async with self._errors(), self._change() as connection:
            await connection.execute("DELETE FROM myna_tool_gaps WHERE tenant = ANY($1::text[])", list(tenants))

    @asynccontextmanager
    async def _change(self) -> AsyncIterator[Any]:
        """Open a transaction in which no other gateway changes rows."""
        async with self._storage.transaction() as connection:
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
            yield connection

    @asynccontextmanager
    async def _errors(self) -> AsyncIterator[None]:
        """Turn errors of the database into GapStoreError."""
        try:
            yield
        except (*self._storage.failures, *self._storage.refusals) as error:
            raise GapStoreError(f"the durations of tools cannot be stored or read now: {error}") from error


def _columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    """Return the columns of rows, of which there is at least one."""
    return [list(column) for column in zip(*rows, strict=True)]
