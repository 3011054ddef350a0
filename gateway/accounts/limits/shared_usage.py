"""Use of the limits of keys by all gateways, in PostgreSQL."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gateway.accounts.errors import KeyStoreError
from gateway.accounts.limits.shared_meter import UsageGrant, UsageReport

if TYPE_CHECKING:
    from gateway.journal import PostgresStorage

_CREATE = """
CREATE TABLE IF NOT EXISTS myna_key_usage (
    key text NOT NULL,
    kind text NOT NULL,
    "window" double precision NOT NULL,
    rate double precision NOT NULL,
    used double precision NOT NULL,
    at timestamptz NOT NULL,
    PRIMARY KEY (key, kind)
);
CREATE TABLE IF NOT EXISTS myna_key_allotments (
    key text NOT NULL,
    kind text NOT NULL,
    gateway bigint NOT NULL,
    amount double precision NOT NULL,
    PRIMARY KEY (key, kind, gateway)
);
CREATE INDEX IF NOT EXISTS myna_key_allotments_gateway ON myna_key_allotments (gateway);
"""
_REPORTS = """
unnest($2::text[], $3::text[], $4::float8[], $5::float8[], $6::float8[], $7::float8[], $8::float8[], $9::float8[])
WITH ORDINALITY AS report (key, kind, "window", rate, "limit", used, held, wanted, number)
"""
_COUNT = f"""
INSERT INTO myna_key_usage AS u (key, kind, "window", rate, used, at)
SELECT key, kind, "window", rate, used, clock_timestamp() FROM {_REPORTS}, (VALUES ($1::bigint)) AS me (id)
WHERE EXISTS (SELECT FROM myna_gateways WHERE id = me.id AND alive FOR SHARE)
ORDER BY key, kind
ON CONFLICT (key, kind) DO UPDATE SET
    "window" = greatest(u."window", excluded."window"),
    rate = excluded.rate,
    used = excluded.used + CASE
        WHEN excluded."window" > u."window" THEN 0
        ELSE greatest(0, u.used - excluded.rate * greatest(0, extract(epoch FROM excluded.at - u.at)))
    END,
    at = greatest(u.at, excluded.at)
RETURNING key
"""
"""Statement that counts what was used. It locks the rows in one order, so that no two gateways wait for each other."""
_GRANT = f"""
WITH totals AS (
    SELECT number, report.key, report.kind, held, u.used,
        coalesce((
            SELECT sum(amount) FROM myna_key_allotments AS a
            WHERE a.key = report.key AND a.kind = report.kind AND a.gateway <> $1
        ), 0) AS others, "limit", wanted
    FROM {_REPORTS} JOIN myna_key_usage AS u ON u.key = report.key AND u.kind = report.kind
), grants AS (
    SELECT *, least(wanted, "limit" - used - others - held) AS granted FROM totals
), kept AS (
    INSERT INTO myna_key_allotments (key, kind, gateway, amount)
    SELECT key, kind, $1, held + greatest(0, granted) FROM grants WHERE held + granted > 0 OR held > 0
    ON CONFLICT (key, kind, gateway) DO UPDATE SET amount = excluded.amount
), dropped AS (
    DELETE FROM myna_key_allotments AS a USING grants
    WHERE a.key = grants.key AND a.kind = grants.kind AND a.gateway = $1 AND held + granted <= 0 AND held <= 0
)
SELECT granted, used, others FROM grants ORDER BY number
"""
_FREE = """
DELETE FROM myna_key_allotments AS a
WHERE NOT EXISTS (SELECT FROM myna_gateways AS g WHERE g.id = a.gateway AND g.alive)
"""
_FORGET = "DELETE FROM myna_key_{} WHERE key = $1"


class SharedUsage:
    """Use of the limits of keys by all gateways. All methods raise KeyStoreError if the database fails."""

    def __init__(self, storage: "PostgresStorage") -> None:
        self._storage = storage

    async def create_tables(self) -> None:
        """Create the tables if there are none."""
        try:
            async with self._storage.schema_transaction() as connection:
                await connection.execute(_CREATE)
        except self._storage.failures as error:
            raise KeyStoreError(f"limits of API keys cannot be shared: {error}") from error

    async def exchange(self, reports: Sequence[UsageReport]) -> list[UsageGrant]:
        """Report what was used, and return what is granted, in the order of the reports. Raises LeaseLost."""
        values = (self._storage.gateway, *map(list, zip(*reports, strict=True)))
        try:
            async with self._storage.transaction() as connection:
                # another statement reads the allotments, because it sees those of transactions that this one waited for
                counted = await connection.fetch(_COUNT, *values)
                if len(counted) < len(reports):
                    raise self._storage.lease_lost()
                return [UsageGrant(*row) for row in await connection.fetch(_GRANT, *values)]
        except self._storage.failures as error:
            raise KeyStoreError(f"limits of API keys cannot be checked now: {error}") from error

    async def free_allotments(self) -> None:
        """Delete the allotments of gateways that are marked as dead."""
        try:
            async with self._storage.transaction() as connection:
                await connection.execute(_FREE)
        except self._storage.failures as error:
            raise KeyStoreError(f"limits of API keys cannot be shared now: {error}") from error

    async def forget(self, key: str) -> None:
        """Delete what is stored about a deleted key."""
        try:
            async with self._storage.transaction() as connection:
                for table in ("usage", "allotments"):
                    await connection.execute(_FORGET.format(table), key)
        except self._storage.failures as error:
            raise KeyStoreError(f"limits of API keys cannot be deleted now: {error}") from error
