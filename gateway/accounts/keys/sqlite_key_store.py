"""Virtual keys in SQLite, in the journal's file."""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import msgspec

from gateway.accounts.errors import KeyStoreError
from gateway.accounts.keys.key_store import KeyChange
from gateway.accounts.keys.virtual_key import KeyRecord, decode_record, encode_record

_Result = TypeVar("_Result")

_CREATE = "CREATE TABLE IF NOT EXISTS api_keys (id TEXT PRIMARY KEY, record TEXT NOT NULL)"


class Database(Protocol):
    """A connection, and the only thread that uses it."""

    def run(self, work: Callable[[sqlite3.Connection], _Result]) -> "asyncio.Future[_Result]":
        """Call `work` with the connection, in the thread. No transaction is open."""


class SqliteKeyStore:
    """Storage of virtual keys in SQLite. Only this process uses it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def load(self) -> Sequence[KeyRecord]:
        """Create the table if there is none, and return all keys. See `KeyStore.load`."""

        def load(connection: sqlite3.Connection) -> list[str]:
            connection.execute(_CREATE)
            return [record for (record,) in connection.execute("SELECT record FROM api_keys")]

        try:
            return [decode_record(record) for record in await self._run(load)]
        except msgspec.DecodeError as error:
            raise KeyStoreError(f"the stored API keys are damaged: {error}") from error

    async def create(self, record: KeyRecord) -> None:
        """Store a new key. See `KeyStore.create`."""
        values = (record.id, encode_record(record).decode())
        await self._run(lambda connection: connection.execute("INSERT INTO api_keys VALUES (?, ?)", values))

    async def replace(self, before: KeyRecord, after: KeyRecord) -> bool:
        """Replace a key. See `KeyStore.replace`."""
        values = (encode_record(after).decode(), before.id, encode_record(before).decode())
        update = "UPDATE api_keys SET record = ? WHERE id = ? AND record = ?"
        return await self._run(lambda connection: connection.execute(update, values).rowcount == 1)

    async def delete(self, id: str) -> None:
        """Delete a key. See `KeyStore.delete`."""
        await self._run(lambda connection: connection.execute("DELETE FROM api_keys WHERE id = ?", (id,)))

    async def changes(self) -> Sequence[KeyChange]:
        """Return nothing: no other process changes the keys. See `KeyStore.changes`."""
        return ()

    async def _run(self, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
        try:
            return await self._database.run(work)
        except (sqlite3.Error, RuntimeError) as error:  # RuntimeError: the thread has ended, because the server stops
            raise KeyStoreError(f"API keys cannot be stored or read now: {error}") from error
