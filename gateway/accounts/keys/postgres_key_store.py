"""Virtual keys in PostgreSQL, which all gateways share. Each gateway asks for changes about once a second."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.accounts.errors import KeyStoreError
from gateway.accounts.keys.key_store import KeyChange
from gateway.accounts.keys.virtual_key import KeyRecord, decode_record, encode_record

if TYPE_CHECKING:
    from gateway.journal import PostgresStorage

_LOCK = 0x6D796E6B
"""The bytes `mynk`. Key of the lock that a change holds, so that changes commit in the order of their versions: then no
gateway can miss one that commits after a later version was read."""
_CREATE = """
CREATE SEQUENCE IF NOT EXISTS myna_key_versions;
CREATE TABLE IF NOT EXISTS myna_keys (
    id text PRIMARY KEY,
    record text,
    version bigint NOT NULL,
    changed timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS myna_keys_version ON myna_keys (version);
"""
"""`record` is null for a deleted key, until all gateways have read that."""
_REPLACE = """
UPDATE myna_keys SET record = $3, version = nextval('myna_key_versions'), changed = now()
WHERE id = $1 AND record = $2 RETURNING id
"""
_DELETE = """
UPDATE myna_keys SET record = NULL, version = nextval('myna_key_versions'), changed = now()
WHERE id = $1 AND record IS NOT NULL
"""
_PURGE = "DELETE FROM myna_keys WHERE record IS NULL AND changed < now() - interval '1 day'"
_CHANGES = "SELECT id, record, version FROM myna_keys WHERE version > $1 ORDER BY version LIMIT 1000"


class PostgresKeyStore:
    """Storage of virtual keys in PostgreSQL."""

    def __init__(self, storage: "PostgresStorage") -> None:
        self._storage = storage
        self._version = 0
        """Version of the newest change that this gateway knows."""

    async def load(self) -> Sequence[KeyRecord]:
        """Create the table if there is none, and return all keys. See `KeyStore.load`."""
        try:
            async with self._storage.schema_transaction() as connection:
                await connection.execute(_CREATE)
                await connection.execute(_PURGE)
        except self._storage.failures as error:
            raise KeyStoreError(f"API keys cannot be read: {error}") from error
        records: dict[str, KeyRecord | None] = {}
        while changes := await self.changes():
            records.update(changes)
        return [record for record in records.values() if record is not None]

    async def create(self, record: KeyRecord) -> None:
        """Store a new key. See `KeyStore.create`."""
        insert = "INSERT INTO myna_keys (id, record, version) VALUES ($1, $2, nextval('myna_key_versions'))"
        async with self._change() as connection:
            await connection.execute(insert, record.id, encode_record(record).decode())

    async def replace(self, before: KeyRecord, after: KeyRecord) -> bool:
        """Replace a key. See `KeyStore.replace`."""
        texts = encode_record(before).decode(), encode_record(after).decode()
        async with self._change() as connection:
            return await connection.fetchval(_REPLACE, before.id, *texts) is not None

    async def delete(self, id: str) -> None:
        """Delete a key. See `KeyStore.delete`."""
        async with self._change() as connection:
            await connection.execute(_DELETE, id)

    async def changes(self) -> Sequence[KeyChange]:
        """Return at most 1,000 changes. See `KeyStore.changes`."""
        try:
            async with self._storage.transaction() as connection:
                rows = await connection.fetch(_CHANGES, self._version)
            changes = [KeyChange(id, None if record is None else decode_record(record)) for id, record, _ in rows]
        except self._storage.failures as error:
            raise KeyStoreError(f"API keys cannot be read now: {error}") from error
        except msgspec.DecodeError as error:
            raise KeyStoreError(f"the stored API keys are damaged: {error}") from error
        if rows:
            self._version = rows[-1]["version"]
        return changes

    @asynccontextmanager
    async def _change(self) -> AsyncIterator[Any]:
        """Open a transaction that changes keys. Raises KeyStoreError if the database fails."""
        try:
            async with self._storage.transaction() as connection:
                await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
                yield connection
        except self._storage.failures as error:
            raise KeyStoreError(f"API keys cannot be stored now: {error}") from error
