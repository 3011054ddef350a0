"""Storage of the ledger in PostgreSQL, beside the journal that several gateways share."""

import math
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

from gateway.accounts.ledger.spend import CallSpend, storable_row, storable_text
from gateway.accounts.ledger.usage_query import SUMS, LedgerError, UsageQuery, UsageSum

if TYPE_CHECKING:
    from gateway.journal import PostgresStorage

_CREATE = """
CREATE TABLE IF NOT EXISTS myna_spend (
    id text PRIMARY KEY,
    ended double precision NOT NULL,
    key text NOT NULL,
    session text NOT NULL,
    model text NOT NULL,
    engine text NOT NULL,
    state text NOT NULL,
    prompt bigint NOT NULL,
    cached bigint NOT NULL,
    completion bigint NOT NULL,
    reasoning bigint NOT NULL,
    lost bigint NOT NULL,
    cost double precision NOT NULL,
    tags text NOT NULL,
    tool_calls bigint NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS myna_spend_time ON myna_spend (ended);
CREATE INDEX IF NOT EXISTS myna_spend_key ON myna_spend (key, ended);
"""
_HAS_TOOL_CALLS = """
SELECT EXISTS (
    SELECT FROM pg_attribute
    WHERE attrelid = 'myna_spend'::regclass AND attname = 'tool_calls' AND NOT attisdropped
)
"""
_ADD_TOOL_CALLS = "ALTER TABLE myna_spend ADD COLUMN tool_calls bigint NOT NULL DEFAULT 0"
"""Change of a table of an earlier version. PostgreSQL changes no row. Gateways of that version can still add rows."""
_INSERT = """
INSERT INTO myna_spend SELECT * FROM unnest(
    $1::text[], $2::float8[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
    $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::float8[], $14::text[], $15::bigint[]
) ON CONFLICT (id) DO NOTHING
"""
_GROUP_COLUMNS = {
    "key": "key",
    "session": "session",
    "model": "model",
    "day": "to_char(to_timestamp(ended) AT TIME ZONE 'UTC', 'YYYY-MM-DD')",
}
_CHUNK = 1_000
"""Number of rows of one statement."""


class PostgresLedger:
    """Storage of the ledger of all gateways. See `LedgerStorage`."""

    def __init__(self, storage: "PostgresStorage") -> None:
        self._storage = storage

    @classmethod
    async def open(cls, storage: "PostgresStorage") -> "PostgresLedger":
        """Return the storage; create its table if there is none, and add the columns that a table of
        an earlier version lacks. Raises LedgerError."""
        ledger = cls(storage)
        async with ledger._errors(), storage.schema_transaction() as connection:
            await connection.execute(_CREATE)
            if not await connection.fetchval(_HAS_TOOL_CALLS):  # the change locks the table, also if it is not needed
                await connection.execute(_ADD_TOOL_CALLS)
        return ledger

    async def insert(self, rows: Iterable[CallSpend]) -> None:
        """Store rows. See `LedgerStorage`."""
        remaining = iter(rows)
        while chunk := list(islice(remaining, _CHUNK)):
            columns = zip(*map(storable_row, chunk), strict=True)
            async with self._errors(), self._storage.transaction() as connection:
                await connection.execute(_INSERT, *map(list, columns))

    async def delete_before(self, when: float, limit: int) -> int:
        """Delete old rows. See `LedgerStorage`."""
        statement = "DELETE FROM myna_spend WHERE id IN (SELECT id FROM myna_spend WHERE ended < $1 LIMIT $2)"
        async with self._errors(), self._storage.transaction() as connection:
            done: str = await connection.execute(statement, when, limit)
        return int(done.rpartition(" ")[2])

    async def sums(self, query: UsageQuery) -> list[UsageSum]:
        """Answer a query. See `LedgerStorage`."""
        columns = [_GROUP_COLUMNS[group] for group in query.groups]
        conditions, values = ["ended >= $1", "ended < $2"], list[object]((query.start, query.end))
        for name in ("key", "session", "model"):
            wanted = getattr(query, name)
            if wanted is not None:
                values.append(storable_text(wanted))
                conditions.append(f"{name} = ${len(values)}")
        numbers = ", ".join(map(str, range(1, len(columns) + 1)))
        grouping = f"GROUP BY {numbers} ORDER BY {numbers}" if columns else ""
        statement = (
            f"SELECT {', '.join([*columns, SUMS])} FROM myna_spend WHERE {' AND '.join(conditions)} {grouping} "
            f"LIMIT {query.limit:d} OFFSET {query.offset:d}"
        )
        async with self._errors(), self._storage.transaction() as connection:
            rows = await connection.fetch(statement, *values)
        count = len(columns)
        return [UsageSum(tuple(row)[:count], *_numbers(tuple(row)[count:])) for row in rows]

    async def totals(self, key: str, since: float) -> tuple[int, float]:
        """Return the tokens and the cost of a key's calls. See `LedgerStorage`."""
        (total,) = await self.sums(UsageQuery((), since, math.inf, key))
        return total.prompt + total.completion, total.cost

    async def close(self) -> None:
        """Do nothing: the journal closes its connections."""

    @asynccontextmanager
    async def _errors(self) -> AsyncIterator[None]:
        """Turn errors of the database into LedgerError."""
        try:
            yield
        except TimeoutError as error:
            raise LedgerError("the query takes too long; ask for a shorter time or fewer groups") from error
        except self._storage.failures as error:
            raise LedgerError(f"the ledger cannot be used: {error}") from error


def _numbers(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the sums of a row: PostgreSQL sums whole numbers as decimals."""
    return (*(int(number) for number in row[:-1]), float(row[-1]))
