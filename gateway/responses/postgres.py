"""Responses in PostgreSQL, where every gateway finds those of all."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from gateway.responses.store import CONVERSATION_BYTES, ResponseStoreError, StoredResponse, Told, check_size, hidden

if TYPE_CHECKING:
    from gateway.journal import PostgresStorage

_CREATE = """
CREATE TABLE IF NOT EXISTS myna_responses (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant text NOT NULL,
    id text NOT NULL,
    found boolean NOT NULL,
    at double precision NOT NULL,
    before bigint,
    followers integer NOT NULL DEFAULT 0,
    session text,
    input text NOT NULL,
    answer text NOT NULL,
    begun text NOT NULL,
    runs_in text,
    size bigint NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS myna_responses_found ON myna_responses (tenant, id) WHERE found;
CREATE INDEX IF NOT EXISTS myna_responses_oldest ON myna_responses (at) WHERE found AND begun = '';
CREATE INDEX IF NOT EXISTS myna_responses_session ON myna_responses (tenant, session) WHERE session IS NOT NULL;
CREATE INDEX IF NOT EXISTS myna_responses_unfinished ON myna_responses (tenant, runs_in) WHERE begun <> '';
"""
"""As in SQLite; see `archive.file`."""

_COLUMNS = "tenant, id, input, answer, session, begun, runs_in"
_CHAIN = """
WITH RECURSIVE turns AS (
    SELECT number, before, input, answer, session, begun = '' AS ended, size::bigint AS held
    FROM myna_responses WHERE tenant = $1 AND id = $2 AND found
    UNION ALL
    SELECT r.number, r.before, r.input, r.answer, r.session, true, turns.held + r.size
    FROM myna_responses AS r JOIN turns ON r.number = turns.before WHERE turns.held <= $3
)
SELECT input, answer, session, ended FROM turns ORDER BY number
"""
_SURPLUS = """
WITH sizes AS (
    SELECT number, tenant, size, found AND begun = '' AS ended FROM myna_responses
), shares AS (
    SELECT number, ended, size,
        sum(size) OVER (PARTITION BY tenant ORDER BY ended, number DESC) AS held
    FROM sizes
)
SELECT number FROM (
    SELECT number, ended, sum(size) OVER (ORDER BY ended, held, number DESC) AS total FROM shares
) AS sums WHERE ended AND total > $1 ORDER BY number LIMIT 1000
"""
"""Query of the ended responses that do not fit any more. `held` is the size of a response and of all newer ones of its
tenant. Responses with the largest `held` go first: the oldest of the tenants that hold most."""
_AT_ONCE = 1000
_TIDY_SECONDS = 30.0


class PostgresResponseStore:
    """An `ResponseStore`. The bound on its bytes is kept within half a minute: counting takes a look at every row."""

    def __init__(self, storage: "PostgresStorage", max_bytes: int, ttl: float) -> None:
        """`max_bytes`: of responses that are kept, by all gateways together. `ttl`: seconds for which one is."""
        self.keeps = max_bytes > 0
        self._storage = storage
        self._max_bytes = max_bytes
        self._ttl = ttl
        self._tidied = 0.0

    @classmethod
    async def open(cls, storage: "PostgresStorage", max_bytes: int, ttl: float) -> "PostgresResponseStore":
        """Makes the table if need be. Raises ResponseStoreError."""
        archive = cls(storage, max_bytes, ttl)
        try:
            async with storage.making_tables() as connection:
                await connection.execute(_CREATE)
        except storage.failures as error:
            raise ResponseStoreError(str(error)) from error
        return archive

    async def keep(self, response: StoredResponse, earlier: Sequence[Told] = ()) -> None:
        """See `ResponseStore`."""
        at = time.time()
        async with self._transaction() as connection:
            before = None
            if response.before is not None:
                before = await _number(connection, response.tenant, response.before)
            if before is None:
                for told in earlier:
                    before = await _insert(connection, hidden(response.tenant, told), before, at)
            await _insert(connection, response, before, at, found=True)

    async def end(self, response: StoredResponse) -> bool:
        """See `ResponseStore`."""
        query = (
            "UPDATE myna_responses SET input = $1, answer = $2, begun = '', runs_in = NULL, size = $3 "
            "WHERE tenant = $4 AND id = $5 AND found AND begun <> '' RETURNING number"
        )
        texts = (response.input.decode(), response.answer.decode())
        async with self._transaction() as connection:
            ended = await connection.fetchval(query, *texts, response.size, response.tenant, response.id)
        return ended is not None

    async def find(self, tenant: str, id: str) -> StoredResponse | None:
        """See `ResponseStore`."""
        query = f"SELECT {_COLUMNS} FROM myna_responses WHERE tenant = $1 AND id = $2 AND found"
        async with self._transaction() as connection:
            found = await connection.fetchrow(query, tenant, id)
        return None if found is None else _archived(found)

    async def conversation(self, tenant: str, id: str) -> Sequence[Told]:
        """See `ResponseStore`."""
        async with self._transaction() as connection:
            rows = await connection.fetch(_CHAIN, tenant, id, 2 * CONVERSATION_BYTES)
        return check_size(
            [Told(input.encode(), answer.encode(), session, ended) for input, answer, session, ended in rows]
        )

    async def unfinished(self, tenant: str | None = None, session: str | None = None) -> Sequence[StoredResponse]:
        """See `ResponseStore`."""
        query = f"SELECT {_COLUMNS} FROM myna_responses WHERE begun <> ''"
        values: tuple[Any, ...] = ()
        if tenant is not None:
            query, values = f"{query} AND tenant = $1 AND runs_in = $2", (tenant, session)
        async with self._transaction() as connection:
            rows = await connection.fetch(f"{query} ORDER BY number", *values)
        return [_archived(row) for row in rows]

    async def forget(self, tenant: str, id: str) -> bool:
        """See `ResponseStore`."""
        async with self._transaction() as connection:
            number = await _number(connection, tenant, id)
            if number is not None:
                await _forget(connection, number)
        return number is not None

    async def forget_sessions(self, sessions: Sequence[tuple[str, str]]) -> None:
        """See `ResponseStore`."""
        query = (
            "SELECT number FROM myna_responses AS r JOIN unnest($1::text[], $2::text[]) AS gone (tenant, session) "
            "ON r.tenant = gone.tenant AND r.session = gone.session WHERE found ORDER BY number DESC"
        )
        tenants, ids = [tenant for tenant, _ in sessions], [id for _, id in sessions]
        await self._forget_all(query, tenants, ids)

    async def tidy(self) -> None:
        """See `ResponseStore`."""
        now = time.monotonic()
        if now - self._tidied < _TIDY_SECONDS:
            return
        self._tidied = now
        old = "SELECT number FROM myna_responses WHERE found AND begun = '' AND at < $1 ORDER BY at LIMIT $2"
        await self._forget_all(old, time.time() - self._ttl, _AT_ONCE)
        await self._forget_all(_SURPLUS, self._max_bytes)

    async def _forget_all(self, query: str, *values: Any) -> None:
        """Those whose numbers the query gives, a transaction each: several gateways may be at it."""
        async with self._transaction() as connection:
            rows = await connection.fetch(query, *values)
        for row in rows:
            async with self._transaction() as connection:
                await _forget(connection, row["number"])

    async def close(self) -> None:
        """See `ResponseStore`. The storage is closed by whoever opened it."""

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Any]:
        """Raises ResponseStoreError for whatever fails in it for the database's reasons."""
        try:
            async with self._storage.transaction() as connection:
                yield connection
        except self._storage.failures as error:
            raise ResponseStoreError(f"responses cannot be kept or read now: {error}") from error


async def _insert(
    connection: Any, response: StoredResponse, before: int | None, at: float, *, found: bool = False
) -> int:
    """Its number. What came before has one follower more."""
    number: int = await connection.fetchval(
        "INSERT INTO myna_responses (tenant, id, found, at, before, session, input, answer, begun, runs_in, size) "
        "VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) RETURNING number",
        *(response.tenant, response.id, found, at, before, response.session),
        *(response.input.decode(), response.answer.decode(), response.begun.decode(), response.runs_in),
        response.size,
    )
    if before is not None:
        await connection.execute("UPDATE myna_responses SET followers = followers + 1 WHERE number = $1", before)
    return number


async def _number(connection: Any, tenant: str, id: str) -> int | None:
    """Held until the transaction ends, so that nobody forgets it meanwhile."""
    query = "SELECT number FROM myna_responses WHERE tenant = $1 AND id = $2 AND found FOR UPDATE"
    number: int | None = await connection.fetchval(query, tenant, id)
    return number


async def _forget(connection: Any, number: int) -> None:
    """See `archive.file`. Rows are locked from the newest back, by everybody."""
    await connection.execute("UPDATE myna_responses SET found = false WHERE number = $1", number)
    at: int | None = number
    while at is not None:
        at_once = "DELETE FROM myna_responses WHERE number = $1 AND NOT found AND followers = 0 RETURNING before"
        gone = await connection.fetchrow(at_once, at)
        if gone is None:
            return
        at = gone["before"]
        await connection.execute("UPDATE myna_responses SET followers = followers - 1 WHERE number = $1", at)


def _archived(row: Any) -> StoredResponse:
    return StoredResponse(
        row["tenant"],
        row["id"],
        row["input"].encode(),
        row["answer"].encode(),
        session=row["session"],
        begun=row["begun"].encode(),
        runs_in=row["runs_in"],
    )
