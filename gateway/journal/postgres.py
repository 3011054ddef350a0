"""The journal in PostgreSQL, where several gateways keep their sessions, and each session is one gateway's.

A gateway is a row with a time until which it counts as alive, and pushes that on as long as it lives. Whoever finds a
row whose time is up marks it as dead, for good, and then takes over its sessions. Every commit locks its own gateway's
row and finds it alive there, or keeps nothing. So a gateway that was only slow, or cut off, adds nothing to a session
that is another's by then, and learns of it at its next commit.

A session's name is claimed before the session is made: of two gateways that are asked for it at once, one has it.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

from gateway.journal.storage import SCHEMA, Batch, JournalError, LeaseLost, Row

if TYPE_CHECKING:  # an extra
    import asyncpg

log = logging.getLogger("myna.journal")

_LOCK = 0x6D796E61
"""`myna`: held while tables are made, so that two gateways that start together do not make them twice."""
_TIMEOUT = 10.0
"""Seconds for a statement, and to connect."""
_CONNECTIONS = 4
_EXPIRED = 10_000
"""Names of expired sessions that are kept."""
_KEYS = 40
"""Bits of a session's key that count sessions; the ones above are the gateway's number."""

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
"""`key` is null while a session's name is only claimed. `first`: the number of the first of these facts."""

_ALIVE = "SELECT id FROM myna_gateways WHERE id = $1 AND alive FOR SHARE"

_KEEP = f"""
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
"""Facts may come a second time, if nobody heard that they were kept the first time."""

_CLAIM = f"""
INSERT INTO myna_sessions (tenant, id, owner) SELECT $2, $3, me.id FROM ({_ALIVE}) AS me
ON CONFLICT (tenant, id) DO UPDATE SET claimed = now() WHERE myna_sessions.owner = $1
RETURNING owner
"""
_FIND = """
SELECT owner, url, alive FROM myna_sessions AS s JOIN myna_gateways AS g ON g.id = s.owner
WHERE s.tenant = $1 AND s.id = $2
"""
_INHERIT = f"""
WITH me AS ({_ALIVE}),
dead AS (
    SELECT s.tenant, s.id FROM myna_sessions AS s JOIN myna_gateways AS g ON g.id = s.owner
    WHERE NOT g.alive ORDER BY s.key LIMIT $2 FOR UPDATE OF s SKIP LOCKED
)
UPDATE myna_sessions AS s SET owner = me.id FROM me, dead WHERE s.tenant = dead.tenant AND s.id = dead.id
RETURNING s.tenant, s.id, s.key
"""
_STALE = "owner = $1 AND key IS NULL AND claimed < now() - interval '1 minute'"
"""Names that were claimed, and under which no session was made."""


class Home(NamedTuple):
    """The gateway that has a session: its number and address, and whether it was still counted as alive."""

    gateway: int
    url: str
    alive: bool


class Inherited(NamedTuple):
    """A session that was a dead gateway's. Without a key, only its name was claimed."""

    tenant: str
    id: str
    key: int | None


class PostgresStorage:
    """A `Storage`, and what gateways say to one another through it. Owner of the connections.

    All methods but `commit` raise one of `failures` if the database cannot be asked.
    """

    def __init__(self, url: str, lease: float, lost: Callable[[], None]) -> None:
        """`lease`: seconds for which a gateway counts as alive without another word. `lost` is called once, when others
        have taken this one for dead."""
        parts = urlsplit(url)
        self.name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        self.failures: tuple[type[BaseException], ...] = (OSError,)
        self.refusals: tuple[type[BaseException], ...] = (OverflowError, UnicodeError)
        self.gateway = 0
        """Our number, once we have joined."""
        self.lease = lease
        self._url = url
        self._lost = lost
        self._pool: asyncpg.Pool[Any] | None = None
        self._count = 0

    async def start(self) -> None:
        """Connects, and makes the tables if need be. Raises JournalError."""
        try:
            import asyncpg
        except ImportError:
            raise JournalError(
                "the journal is in PostgreSQL, which needs asyncpg: pip install 'myna[postgres]'"
            ) from None
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
                self._url, min_size=1, max_size=_CONNECTIONS, timeout=_TIMEOUT, command_timeout=_TIMEOUT
            )
            async with self.making_tables() as connection:
                if await connection.fetchval("SELECT to_regclass('myna_schema')") is None:
                    await connection.execute(_CREATE)
                    await connection.execute("INSERT INTO myna_schema VALUES ($1)", SCHEMA)
                schema = await connection.fetchval("SELECT version FROM myna_schema")
        except (*self.failures, ValueError) as error:
            await self._disconnect()
            raise JournalError(f"the journal at {self.name} cannot be used: {_words(error)}") from error
        if schema != SCHEMA:
            await self._disconnect()
            raise JournalError(
                f"the journal at {self.name} was made by another version of myna (schema {schema}, this one knows "
                f"{SCHEMA}); let all gateways be of one version, and this one have a database of its own until then"
            )

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        """A connection, for what belongs together, also in tables that are somebody else's."""
        async with self._connections.acquire() as connection, connection.transaction():
            yield connection

    @asynccontextmanager
    async def making_tables(self) -> AsyncIterator[Any]:
        """The same, while nobody else makes any."""
        async with self.transaction() as connection:
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
            yield connection

    # gateways

    async def join(self, url: str, host: str) -> None:
        """Makes us one of the gateways. `url`: where others reach us; `host`: what tells our machine from others.

        Who was there before, on the same machine with the same address, cannot be any more. Raises JournalError if on
        another machine somebody is.
        """
        async with self.making_tables() as connection:
            await connection.execute(
                "UPDATE myna_gateways SET alive = false WHERE alive AND url = $1 AND host = $2", url, host
            )
            other = await connection.fetchval(
                "SELECT host FROM myna_gateways WHERE alive AND url = $1 AND until > now()", url
            )
            if other is not None:
                raise JournalError(
                    f"a gateway on {other} has the same address {url}; give each with --advertise the one at which the "
                    "others reach it"
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

    async def beat(self) -> dict[int, str]:
        """Says that we live. Returns who else does: addresses, by their numbers. Raises LeaseLost."""
        renewed = await self._connections.fetchval(
            "UPDATE myna_gateways SET until = now() + make_interval(secs => $2) WHERE id = $1 AND alive RETURNING id",
            self.gateway,
            self.lease,
        )
        if renewed is None:
            raise self._lease_lost()
        return await self.others()

    async def others(self) -> dict[int, str]:
        """Who else lives: addresses, by their numbers."""
        rows = await self._connections.fetch("SELECT id, url FROM myna_gateways WHERE alive AND id <> $1", self.gateway)
        return {row["id"]: row["url"] for row in rows}

    async def bury(self) -> list[str]:
        """Marks gateways as dead whose time is up. Returns their addresses."""
        rows = await self._connections.fetch(
            "UPDATE myna_gateways SET alive = false WHERE alive AND until < now() AND id <> $1 RETURNING url",
            self.gateway,
        )
        return [row["url"] for row in rows]

    def _lease_lost(self) -> LeaseLost:
        self._lost()
        return LeaseLost("other gateways have taken this one for dead, and its sessions are theirs")

    # sessions

    async def claim(self, tenant: str, id: str) -> bool:
        """Whether the name is ours, for a session that is about to be made under it."""
        return await self._connections.fetchval(_CLAIM, self.gateway, tenant, id) is not None

    async def unclaim(self, held: Callable[[str, str], bool]) -> None:
        """Gives names back that were claimed a while ago, and under which no session is held."""
        rows = await self._connections.fetch(f"SELECT tenant, id FROM myna_sessions WHERE {_STALE}", self.gateway)
        names = [(row["tenant"], row["id"]) for row in rows if not held(row["tenant"], row["id"])]
        if names:  # one that is claimed again meanwhile is not stale
            await self._connections.executemany(
                f"DELETE FROM myna_sessions WHERE {_STALE} AND tenant = $2 AND id = $3",
                [(self.gateway, *name) for name in names],
            )

    async def find(self, tenant: str, id: str) -> Home | None:
        """Who has the session, if anybody does."""
        row = await self._connections.fetchrow(_FIND, tenant, id)
        return None if row is None else Home(*row)

    async def has_expired(self, tenant: str, id: str) -> bool:
        """Whether there was such a session until not long ago."""
        query = "SELECT EXISTS (SELECT FROM myna_expired WHERE tenant = $1 AND id = $2)"
        return bool(await self._connections.fetchval(query, tenant, id))

    async def inherit(self, most: int) -> list[Inherited]:
        """Makes sessions of dead gateways ours, oldest first."""
        rows = await self._connections.fetch(_INHERIT, self.gateway, most)
        return sorted((Inherited(*row) for row in rows), key=lambda one: one.key or 0)

    async def inherited(self) -> list[Inherited]:
        """All that are ours and were another's before."""
        query = f"SELECT tenant, id, key FROM myna_sessions WHERE owner = $1 AND key >> {_KEYS} <> $1 ORDER BY key"
        return [Inherited(*row) for row in await self._connections.fetch(query, self.gateway)]

    async def rows(self, key: int) -> list[Row]:
        """The facts of a session, in order."""
        query = "SELECT first, facts FROM myna_facts WHERE session = $1 ORDER BY first"
        return list(_rows(await self._connections.fetch(query, key)))

    # Storage

    def new_key(self) -> int:
        """See `Storage`."""
        assert self.gateway, "sessions are made once we have joined"
        self._count += 1
        return self.gateway << _KEYS | self._count

    def commit(self, batch: Batch) -> "asyncio.Future[None]":
        """See `Storage`."""
        return asyncio.ensure_future(self._commit(batch))

    async def _commit(self, batch: Batch) -> None:
        ended = set(batch.ended)
        opened = [one for one in batch.opened if one.session not in ended]
        entries = [one for one in batch.entries if one.session not in ended]
        keep = (
            _KEEP,
            self.gateway,
            [one.tenant for one in opened],
            [one.id for one in opened],
            [one.session for one in opened],
            [one.session for one in entries],
            [one.first for one in entries],
            [one.facts.decode() for one in entries],
        )
        if not ended:
            alive, named = await self._connections.fetchrow(*keep)
        else:
            async with self.transaction() as connection:
                await connection.execute(_ALIVE, self.gateway)
                await connection.execute("DELETE FROM myna_sessions WHERE key = ANY ($1::bigint[])", batch.ended)
                await connection.execute("DELETE FROM myna_facts WHERE session = ANY ($1::bigint[])", batch.ended)
                await self._expire(connection, batch.expired)
                alive, named = await connection.fetchrow(*keep)
                if not alive:
                    raise self._lease_lost()  # and nothing of it is kept
        if not alive:
            raise self._lease_lost()
        if named != len(opened):
            raise RuntimeError(f"{len(opened) - named} of the sessions {opened} are another gateway's")

    async def _expire(self, connection: Any, names: Sequence[tuple[str, str]]) -> None:
        if not names:
            return
        await connection.executemany(
            "INSERT INTO myna_expired (tenant, id) VALUES ($1, $2) ON CONFLICT (tenant, id) DO UPDATE SET at = DEFAULT",
            names,
        )
        await connection.execute(
            "DELETE FROM myna_expired WHERE at <= (SELECT max(at) FROM myna_expired) - $1::bigint", _EXPIRED
        )

    def damaged(self, row: int, problem: object) -> JournalError:
        """See `Storage`."""
        return JournalError(f"the journal at {self.name} is damaged: facts from {row} on: {problem}")

    async def close(self) -> None:
        """Leaves the others, who take over at once what is still ours."""
        if self._pool is not None and self.gateway:
            try:
                await self._connections.execute("UPDATE myna_gateways SET alive = false WHERE id = $1", self.gateway)
            except self.failures as error:
                log.warning("the other gateways take over once this one's time is up: %s", _words(error))
        await self._disconnect()

    async def _disconnect(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()

    @property
    def _connections(self) -> Any:
        if self._pool is None:  # who still asks has come while this gateway ends
            raise ConnectionError("the journal is closed, for this gateway ends")
        return self._pool


def _rows(found: Sequence[Any]) -> Iterator[Row]:
    for row in found:
        yield row["first"], [msgspec.json.decode(row["facts"], type=tuple[int, msgspec.Raw])]


def _words(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
