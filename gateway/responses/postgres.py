"""Response store in PostgreSQL, which all gateways share."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from gateway.responses.store import (
    CONVERSATION_BYTES,
    ResponseStoreError,
    StoredResponse,
    StoredTurn,
    check_conversation_size,
    hidden_response,
)

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
"""The columns are those of SQLite; see `gateway.responses.sqlite`."""

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
_BATCH = 1000
"""Maximum number of old responses that are deleted at a time."""
_RETENTION_SECONDS = 30.0
"""Shortest time between two runs of `enforce_retention`, in seconds."""


class PostgresResponseStore:
    """Response store in PostgreSQL. It enforces the limit of its size at most every 30 s, because the count reads every
    row. In between, the store may exceed its limit."""

    def __init__(self, storage: "PostgresStorage", max_bytes: int, ttl: float) -> None:
        """`max_bytes`: maximum size of the responses of all gateways. `ttl`: time to live of a response, in seconds."""
        self.is_enabled = max_bytes > 0
        self._storage = storage
        self._max_bytes = max_bytes
        self._ttl = ttl
        self._tidied = 0.0

    @classmethod
    async def open(cls, storage: "PostgresStorage", max_bytes: int, ttl: float) -> "PostgresResponseStore":
        """Return a store; create its table if there is none. Raises ResponseStoreError."""
        store = cls(storage, max_bytes, ttl)
        try:
            async with storage.schema_transaction() as connection:
                await connection.execute(_CREATE)
        except storage.failures as error:
            raise ResponseStoreError(str(error)) from error
        return store

    async def add(self, response: StoredResponse, previous_turns: Sequence[StoredTurn] = ()) -> None:
        """Store a response. See `ResponseStore.add`."""
        created = time.time()
        async with self._transaction() as connection:
            before = None
            if response.previous_id is not None:
                before = await _number(connection, response.tenant, response.previous_id)
            if before is None:
                for turn in previous_turns:
                    before = await _insert(connection, hidden_response(response.tenant, turn), before, created)
            await _insert(connection, response, before, created, found=True)

    async def complete(self, response: StoredResponse) -> bool:
        """Replace an unfinished response. See `ResponseStore.complete`."""
        query = (
            "UPDATE myna_responses SET input = $1, answer = $2, begun = '', runs_in = NULL, size = $3 "
            "WHERE tenant = $4 AND id = $5 AND found AND begun <> '' RETURNING number"
        )
        texts = (response.input.decode(), response.answer.decode())
        async with self._transaction() as connection:
            ended = await connection.fetchval(query, *texts, response.size, response.tenant, response.id)
        return ended is not None

    async def replace(self, before: StoredResponse, after: StoredResponse) -> bool:
        """Replace an ended response. See `ResponseStore.replace`."""
        query = "SELECT input = $2 AND answer = $3 FROM myna_responses WHERE number = $1"
        created = time.time()
        async with self._transaction() as connection:
            number = await _number(connection, before.tenant, before.id)
            if number is None:
                return False
            if not await connection.fetchval(query, number, before.input.decode(), before.answer.decode()):
                return False
            await _delete(connection, number)
            await _insert(connection, after, None, created, found=True)
        return True

    async def find(self, tenant: str, id: str) -> StoredResponse | None:
        """Return a response. See `ResponseStore.find`."""
        query = f"SELECT {_COLUMNS} FROM myna_responses WHERE tenant = $1 AND id = $2 AND found"
        async with self._transaction() as connection:
            found = await connection.fetchrow(query, tenant, id)
        return None if found is None else _stored_response(found)

    async def load_conversation(self, tenant: str, id: str) -> Sequence[StoredTurn]:
        """Return a response and those before it. See `ResponseStore.load_conversation`."""
        async with self._transaction() as connection:
            rows = await connection.fetch(_CHAIN, tenant, id, 2 * CONVERSATION_BYTES)
        return check_conversation_size(
            [StoredTurn(input.encode(), answer.encode(), session, ended) for input, answer, session, ended in rows]
        )

    async def list_unfinished(self, tenant: str | None = None, session: str | None = None) -> Sequence[StoredResponse]:
        """Return unfinished responses. See `ResponseStore.list_unfinished`."""
        query = f"SELECT {_COLUMNS} FROM myna_responses WHERE begun <> ''"
        values: tuple[Any, ...] = ()
        if tenant is not None:
            query, values = f"{query} AND tenant = $1 AND runs_in = $2", (tenant, session)
        async with self._transaction() as connection:
            rows = await connection.fetch(f"{query} ORDER BY number", *values)
        return [_stored_response(row) for row in rows]

    async def delete(self, tenant: str, id: str) -> bool:
        """Delete a response. See `ResponseStore.delete`."""
        async with self._transaction() as connection:
            number = await _number(connection, tenant, id)
            if number is not None:
                await _delete(connection, number)
        return number is not None

    async def delete_sessions(self, sessions: Sequence[tuple[str, str]]) -> None:
        """Delete the responses of sessions. See `ResponseStore.delete_sessions`."""
        query = (
            "SELECT number FROM myna_responses AS r JOIN unnest($1::text[], $2::text[]) AS gone (tenant, session) "
            "ON r.tenant = gone.tenant AND r.session = gone.session WHERE found ORDER BY number DESC"
        )
        tenants, ids = [tenant for tenant, _ in sessions], [id for _, id in sessions]
        await self._delete_all(query, tenants, ids)

    async def delete_tenant(self, tenant: str) -> None:
        """Delete the responses of a tenant. See `ResponseStore.delete_tenant`."""
        query = "SELECT number FROM myna_responses WHERE tenant = $1 AND found ORDER BY number DESC"
        await self._delete_all(query, tenant)

    async def enforce_retention(self) -> None:
        """Delete old responses, and those that do not fit. See `ResponseStore.enforce_retention`."""
        now = time.monotonic()
        if now - self._tidied < _RETENTION_SECONDS:
            return
        self._tidied = now
        old = "SELECT number FROM myna_responses WHERE found AND begun = '' AND at < $1 ORDER BY at LIMIT $2"
        await self._delete_all(old, time.time() - self._ttl, _BATCH)
        await self._delete_all(_SURPLUS, self._max_bytes)

    async def _delete_all(self, query: str, *values: Any) -> None:
        """Delete the responses whose numbers the query returns, each in a transaction of its own: other gateways may do
        the same at the same time."""
        async with self._transaction() as connection:
            rows = await connection.fetch(query, *values)
        for row in rows:
            async with self._transaction() as connection:
                await _delete(connection, row["number"])

    async def close(self) -> None:
        """Do nothing: the storage is closed by its owner. See `ResponseStore.close`."""

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Any]:
        """Open a transaction. Raises ResponseStoreError if the database fails."""
        try:
            async with self._storage.transaction() as connection:
                yield connection
        except self._storage.failures as error:
            raise ResponseStoreError(f"responses cannot be stored or read now: {error}") from error


async def _insert(
    connection: Any, response: StoredResponse, before: int | None, created: float, *, found: bool = False
) -> int:
    """Insert a response, count it among those that continue the previous response, and return its number."""
    number: int = await connection.fetchval(
        "INSERT INTO myna_responses (tenant, id, found, at, before, session, input, answer, begun, runs_in, size) "
        "VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) RETURNING number",
        *(response.tenant, response.id, found, created, before, response.session),
        *(response.input.decode(), response.answer.decode(), response.resume_data.decode(), response.call_session),
        response.size,
    )
    if before is not None:
        await connection.execute("UPDATE myna_responses SET followers = followers + 1 WHERE number = $1", before)
    return number


async def _number(connection: Any, tenant: str, id: str) -> int | None:
    """Return the number of a response and lock its row, so that no other gateway deletes it in this transaction."""
    query = "SELECT number FROM myna_responses WHERE tenant = $1 AND id = $2 AND found FOR UPDATE"
    number: int | None = await connection.fetchval(query, tenant, id)
    return number


async def _delete(connection: Any, number: int) -> None:
    """Mark a response as deleted, and delete its row and those before it that no other response continues.

    See `gateway.responses.sqlite`. All gateways lock rows from the newest to the oldest, so that deletions cannot wait
    for each other."""
    await connection.execute("UPDATE myna_responses SET found = false WHERE number = $1", number)
    current: int | None = number
    while current is not None:
        delete = "DELETE FROM myna_responses WHERE number = $1 AND NOT found AND followers = 0 RETURNING before"
        deleted = await connection.fetchrow(delete, current)
        if deleted is None:
            return
        current = deleted["before"]
        await connection.execute("UPDATE myna_responses SET followers = followers - 1 WHERE number = $1", current)


def _stored_response(row: Any) -> StoredResponse:
    return StoredResponse(
        row["tenant"],
        row["id"],
        row["input"].encode(),
        row["answer"].encode(),
        session=row["session"],
        resume_data=row["begun"].encode(),
        call_session=row["runs_in"],
    )
