"""Journal in PostgreSQL, which several gateways share. Each session belongs to one gateway.

Each gateway has a row with the end of its lease, and renews the lease as long as it lives. A gateway that finds an
expired lease marks the other one as dead for good, and then takes over its sessions. Each commit locks the row of its
own gateway and stores nothing if that gateway is marked as dead. So a gateway that was slow or cut off cannot add facts
to a session that another one has taken over, and learns about it at its next commit.

A session id is claimed before the session is created: if two gateways get the same id at the same time, only one can
use it.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

from gateway.journal.storage import READABLE_SCHEMAS, SCHEMA, Batch, JournalError, LeaseLost, Row

if TYPE_CHECKING:  # an optional dependency
    import asyncpg

log = logging.getLogger("myna.journal")

_ADVISORY_LOCK = 0x6D796E61
"""The bytes `myna`. Key of the lock that is held while tables are created, so that only one gateway creates them."""
_TIMEOUT_SECONDS = 10.0
"""Timeout of a statement, and of a connection attempt, in seconds."""
_MAX_CONNECTIONS = 4
_MAX_EXPIRED = 10_000
"""Number of expired session ids that are stored."""
_COUNTER_BITS = 40
"""Bits of a session's key that count sessions. The bits above are the gateway's number."""

_CREATE = """
CREATE TABLE myna_schema (version integer NOT NULL);
CREATE TABLE myna_gateways (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    url text NOT NULL,
    host text NOT NULL,
    until timestamptz NOT NULL,
    alive boolean NOT NULL DEFAULT true
);
CREATE TABLE myna_sessions (
    tenant text NOT NULL,
    id text NOT NULL,
    owner bigint NOT NULL REFERENCES myna_gateways,
    key bigint UNIQUE,
    claimed timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, id)
);
CREATE INDEX ON myna_sessions (owner);
CREATE TABLE myna_facts (
    session bigint NOT NULL,
    first bigint NOT NULL,
    facts text NOT NULL,
    PRIMARY KEY (session, first)
);
CREATE TABLE myna_expired (
    at bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    tenant text NOT NULL,
    id text NOT NULL,
    PRIMARY KEY (tenant, id)
);
"""
"""`key` is null while a session id is only claimed. `first`: number of the first fact in the row."""

_ALIVE = "SELECT id FROM myna_gateways WHERE id = $1 AND alive FOR SHARE"

_STORE_FACTS = f"""
WITH me AS ({_ALIVE}),
named AS (
    INSERT INTO myna_sessions (tenant, id, key, owner)
    SELECT tenant, new.id, key, me.id FROM me, unnest($2::text[], $3::text[], $4::bigint[]) AS new (tenant, id, key)
    ON CONFLICT (tenant, id) DO UPDATE SET key = excluded.key WHERE myna_sessions.owner = excluded.owner
    RETURNING key
),
kept AS (
    INSERT INTO myna_facts
    SELECT session, first, facts FROM me, unnest($5::bigint[], $6::bigint[], $7::text[]) AS new (session, first, facts)
    ON CONFLICT (session, first) DO UPDATE SET facts = excluded.facts
)
SELECT (SELECT count(*) FROM me), (SELECT count(*) FROM named)
"""
"""Facts may be committed twice, if the gateway did not learn that the first commit succeeded."""

_CLAIM = f"""
INSERT INTO myna_sessions (tenant, id, owner) SELECT $2, $3, me.id FROM ({_ALIVE}) AS me
ON CONFLICT (tenant, id) DO UPDATE SET claimed = now() WHERE myna_sessions.owner = $1
RETURNING owner
"""
_FIND = """
SELECT owner, url, alive FROM myna_sessions AS s JOIN myna_gateways AS g ON g.id = s.owner
WHERE s.tenant = $1 AND s.id = $2
"""
_TAKE_OVER = f"""
WITH me AS ({_ALIVE}),
dead AS (
    SELECT s.tenant, s.id FROM myna_sessions AS s JOIN myna_gateways AS g ON g.id = s.owner
    WHERE NOT g.alive ORDER BY s.key LIMIT $2 FOR UPDATE OF s SKIP LOCKED
)
UPDATE myna_sessions AS s SET owner = me.id FROM me, dead WHERE s.tenant = dead.tenant AND s.id = dead.id
RETURNING s.tenant, s.id, s.key
"""
_STALE = "owner = $1 AND key IS NULL AND claimed < now() - interval '1 minute'"
"""Condition of session ids that were claimed, but under which no session was created."""


class SessionOwner(NamedTuple):
    """Gateway that owns a session: its number and address, and whether it is not marked as dead."""

    gateway: int
    url: str
    is_alive: bool


class InheritedSession(NamedTuple):
    """A session of a dead gateway. `key`: its number in the journal; None if only its id was claimed and nothing was
    stored yet."""

    tenant: str
    id: str
    key: int | None


class PostgresStorage:
    """Storage in PostgreSQL, with the leases and claims of the gateways. Owner of the connections.

    All methods but `commit` raise one of `failures` if the database does not answer.
    """

    def __init__(self, url: str, lease: float, on_lease_lost: Callable[[], None]) -> None:
        """`lease`: seconds after which a gateway that does not renew its lease counts as dead. `on_lease_lost`: called
        once, when other gateways have marked this one as dead."""
        parts = urlsplit(url)
        self.name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        self.failures: tuple[type[BaseException], ...] = (OSError,)
        self.refusals: tuple[type[BaseException], ...] = (OverflowError, UnicodeError)
        self.gateway = 0
        """Number of this gateway; 0 before `join`."""
        self.lease = lease
        self._url = url
        self._on_lease_lost = on_lease_lost
        self._pool: asyncpg.Pool[Any] | None = None
        self._count = 0

    async def start(self) -> None:
        """Connect, and create the tables if there are none. Raises JournalError."""
        try:
            import asyncpg
        except ImportError:
            raise JournalError("the journal in PostgreSQL requires asyncpg: pip install 'myna[postgres]'") from None
        self.failures = (
            asyncpg.PostgresError,
            asyncpg.InterfaceError,
            asyncpg.InternalClientError,
            OSError,
            TimeoutError,
        )
        self.refusals = (asyncpg.DataError, asyncpg.ProgramLimitExceededError, OverflowError, UnicodeError)
        try:
            self._pool = await asyncpg.create_pool(
                self._url,
                min_size=1,
                max_size=_MAX_CONNECTIONS,
                timeout=_TIMEOUT_SECONDS,
                command_timeout=_TIMEOUT_SECONDS,
            )
            async with self.schema_transaction() as connection:
                if await connection.fetchval("SELECT to_regclass('myna_schema')") is None:
                    await connection.execute(_CREATE)
                    await connection.execute("INSERT INTO myna_schema VALUES ($1)", SCHEMA)
                schema = await connection.fetchval("SELECT version FROM myna_schema")
                if schema in READABLE_SCHEMAS and schema != SCHEMA:  # an older version could not read the new records
                    await connection.execute("UPDATE myna_schema SET version = $1", SCHEMA)
                    schema = SCHEMA
        except (*self.failures, ValueError) as error:
            await self._disconnect()
            raise JournalError(f"the journal at {self.name} cannot be used: {_error_text(error)}") from error
        if schema != SCHEMA:
            await self._disconnect()
            raise JournalError(
                f"the journal at {self.name} was created by another version of myna (schema {schema}; this version "
                f"supports {SCHEMA}); run the same version on all gateways, or give this one a database of its own"
            )

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        """Open a transaction. The response store uses it too, for its own tables."""
        async with self._connections.acquire() as connection, connection.transaction():
            yield connection

    @asynccontextmanager
    async def schema_transaction(self) -> AsyncIterator[Any]:
        """Open a transaction in which no other gateway creates tables."""
        async with self.transaction() as connection:
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _ADVISORY_LOCK)
            yield connection

    # gateways

    async def join(self, url: str, host: str) -> None:
        """Add this gateway to the database. `url`: its address for other gateways. `host`: identifies its machine.

        An older gateway on the same machine with the same address is marked as dead. Raises JournalError if a gateway
        on another machine has the address.
        """
        async with self.schema_transaction() as connection:
            await connection.execute(
                "UPDATE myna_gateways SET alive = false WHERE alive AND url = $1 AND host = $2", url, host
            )
            other_host = await connection.fetchval(
                "SELECT host FROM myna_gateways WHERE alive AND url = $1 AND until > now()", url
            )
            if other_host is not None:
                raise JournalError(
                    f"a gateway on {other_host} has the same address {url}; use --advertise to give each gateway an "
                    "address of its own"
                )
            new = (
                "INSERT INTO myna_gateways (url, host, until) VALUES ($1, $2, now() + make_interval(secs => $3)) "
                "RETURNING id"
            )
            self.gateway = await connection.fetchval(new, url, host, self.lease)
            await connection.execute(
                "DELETE FROM myna_gateways AS g WHERE NOT alive AND until < now() - interval '1 day' "
                "AND NOT EXISTS (SELECT FROM myna_sessions WHERE owner = g.id)"
            )

    async def renew_lease(self) -> dict[int, str]:
        """Renew the lease. Return the addresses of the other living gateways by their numbers. Raises LeaseLost."""
        renewed = await self._connections.fetchval(
            "UPDATE myna_gateways SET until = now() + make_interval(secs => $2) WHERE id = $1 AND alive RETURNING id",
            self.gateway,
            self.lease,
        )
        if renewed is None:
            raise self.lease_lost()
        return await self.other_gateways()

    async def other_gateways(self) -> dict[int, str]:
        """Return the addresses of the other living gateways, by their numbers."""
        rows = await self._connections.fetch("SELECT id, url FROM myna_gateways WHERE alive AND id <> $1", self.gateway)
        return {row["id"]: row["url"] for row in rows}

    async def mark_dead_gateways(self) -> list[str]:
        """Mark gateways as dead whose leases have expired. Return their addresses."""
        rows = await self._connections.fetch(
            "UPDATE myna_gateways SET alive = false WHERE alive AND until < now() AND id <> $1 RETURNING url",
            self.gateway,
        )
        return [row["url"] for row in rows]

    def lease_lost(self) -> LeaseLost:
        """Call `on_lease_lost`, and return the error to raise: the database lists this gateway as dead."""
        self._on_lease_lost()
        return LeaseLost("other gateways have marked this one as dead and taken over its sessions")

    # sessions

    async def claim(self, tenant: str, id: str) -> bool:
        """Claim a session id for a session that is about to be created. Return whether this gateway may use it."""
        return await self._connections.fetchval(_CLAIM, self.gateway, tenant, id) is not None

    async def release_unused_claims(self, is_held: Callable[[str, str], bool]) -> None:
        """Release ids that were claimed more than a minute ago, and under which this gateway has no session."""
        rows = await self._connections.fetch(f"SELECT tenant, id FROM myna_sessions WHERE {_STALE}", self.gateway)
        names = [(row["tenant"], row["id"]) for row in rows if not is_held(row["tenant"], row["id"])]
        if names:  # an id that is claimed again in the meantime is not stale
            await self._connections.executemany(
                f"DELETE FROM myna_sessions WHERE {_STALE} AND tenant = $2 AND id = $3",
                [(self.gateway, *name) for name in names],
            )

    async def find(self, tenant: str, id: str) -> SessionOwner | None:
        """Return the gateway that owns the session; None if there is no such session."""
        row = await self._connections.fetchrow(_FIND, tenant, id)
        return None if row is None else SessionOwner(*row)

    async def has_expired(self, tenant: str, id: str) -> bool:
        """Return whether there was such a session that has expired."""
        query = "SELECT EXISTS (SELECT FROM myna_expired WHERE tenant = $1 AND id = $2)"
        return bool(await self._connections.fetchval(query, tenant, id))

    async def take_over(self, maximum: int) -> list[InheritedSession]:
        """Take over at most `maximum` sessions of dead gateways, and return them, oldest first."""
        rows = await self._connections.fetch(_TAKE_OVER, self.gateway, maximum)
        return sorted((InheritedSession(*row) for row in rows), key=lambda session: session.key or 0)

    async def list_taken_over(self) -> list[InheritedSession]:
        """Return all sessions of this gateway that it has taken over."""
        query = (
            f"SELECT tenant, id, key FROM myna_sessions WHERE owner = $1 AND key >> {_COUNTER_BITS} <> $1 ORDER BY key"
        )
        return [InheritedSession(*row) for row in await self._connections.fetch(query, self.gateway)]

    async def rows(self, key: int) -> list[Row]:
        """Return the facts of a session, in order."""
        query = "SELECT first, facts FROM myna_facts WHERE session = $1 ORDER BY first"
        return list(_decode_rows(await self._connections.fetch(query, key)))

    # Storage

    def new_key(self) -> int:
        """Return a new session key. See `Storage.new_key`."""
        assert self.gateway, "no session may be created before `join`"
        self._count += 1
        return self.gateway << _COUNTER_BITS | self._count

    def commit(self, batch: Batch) -> "asyncio.Future[None]":
        """Store a batch. See `Storage.commit`."""
        return asyncio.ensure_future(self._commit(batch))

    async def _commit(self, batch: Batch) -> None:
        ended = set(batch.ended)
        opened = [item for item in batch.opened if item.session not in ended]
        entries = [item for item in batch.entries if item.session not in ended]
        store_facts = (
            _STORE_FACTS,
            self.gateway,
            [item.tenant for item in opened],
            [item.id for item in opened],
            [item.session for item in opened],
            [item.session for item in entries],
            [item.first for item in entries],
            [item.facts.decode() for item in entries],
        )
        if not ended:
            alive, named = await self._connections.fetchrow(*store_facts)
        else:
            async with self.transaction() as connection:
                await connection.execute(_ALIVE, self.gateway)
                await connection.execute("DELETE FROM myna_sessions WHERE key = ANY ($1::bigint[])", batch.ended)
                await connection.execute("DELETE FROM myna_facts WHERE session = ANY ($1::bigint[])", batch.ended)
                await self._expire(connection, batch.expired)
                alive, named = await connection.fetchrow(*store_facts)
                if not alive:
                    raise self.lease_lost()  # rolls the transaction back
        if not alive:
            raise self.lease_lost()
        if named != len(opened):
            raise RuntimeError(f"{len(opened) - named} of the sessions {opened} belong to another gateway")

    async def _expire(self, connection: Any, names: Sequence[tuple[str, str]]) -> None:
        if not names:
            return
        await connection.executemany(
            "INSERT INTO myna_expired (tenant, id) VALUES ($1, $2) ON CONFLICT (tenant, id) DO UPDATE SET at = DEFAULT",
            names,
        )
        await connection.execute(
            "DELETE FROM myna_expired WHERE at <= (SELECT max(at) FROM myna_expired) - $1::bigint", _MAX_EXPIRED
        )

    def damage_error(self, row: int, problem: object) -> JournalError:
        """Return the error for damaged rows. See `Storage.damage_error`."""
        return JournalError(f"the journal at {self.name} is damaged: facts from number {row}: {problem}")

    async def close(self) -> None:
        """Mark this gateway as dead, so that the others take over its sessions immediately, and disconnect."""
        if self._pool is not None and self.gateway:
            try:
                await self._connections.execute("UPDATE myna_gateways SET alive = false WHERE id = $1", self.gateway)
            except self.failures as error:
                log.warning(
                    "other gateways take over this gateway's sessions only after its lease has expired: %s",
                    _error_text(error),
                )
        await self._disconnect()

    async def _disconnect(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()

    @property
    def _connections(self) -> Any:
        if self._pool is None:  # a request that arrived during the shutdown
            raise ConnectionError("the journal is closed, because this gateway is shutting down")
        return self._pool


def _decode_rows(records: Sequence[Any]) -> Iterator[Row]:
    for row in records:
        yield row["first"], [msgspec.json.decode(row["facts"], type=tuple[int, msgspec.Raw])]


def _error_text(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
