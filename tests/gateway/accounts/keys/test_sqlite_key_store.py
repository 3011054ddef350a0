"""gateway/accounts/keys/sqlite_key_store.py: keys in the journal's file."""

from pathlib import Path

import msgspec
import pytest

from gateway.accounts.errors import KeyStoreError
from gateway.accounts.keys.sqlite_key_store import SqliteKeyStore
from gateway.accounts.keys.virtual_key import KeyRecord
from gateway.journal import FileStorage


def record(id: str = "key_1", **fields: object) -> KeyRecord:
    return KeyRecord(id=id, digest="00" * 32, created=1, **fields)  # type: ignore[arg-type]


async def test_keys_survive_a_restart_beside_the_journal(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "journal")
    store = SqliteKeyStore(storage)
    assert await store.load() == []
    await store.create(record())
    await store.create(record("key_2"))
    await store.create(record("key_3"))
    changed = record(rpm=5)
    assert await store.replace(record(), changed)
    assert not await store.replace(record(), changed), "it is another one now"
    await store.delete("key_2")
    await storage.close()
    storage = FileStorage(tmp_path / "journal")
    assert list(storage.rows()) == [], "the journal itself has nothing"
    assert await SqliteKeyStore(storage).load() == [changed, record("key_3")]
    await storage.close()


@pytest.mark.parametrize(
    "text", ["é😀\u2028", "x" * 10_000, '{"a": 1}', "'; DROP TABLE api_keys; --", '"', "\0", "%s ? $1"]
)
async def test_texts_are_stored_as_they_are(text: str, tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "journal")
    store = SqliteKeyStore(storage)
    await store.load()
    stored = record(name=text, models=(text,), tags=(text,))
    await store.create(stored)
    assert await store.load() == [stored]
    assert await store.replace(stored, msgspec.structs.replace(stored, rpm=1))
    await storage.close()


async def test_a_closed_storage_is_reported(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "journal")
    store = SqliteKeyStore(storage)
    await store.load()
    await storage.close()
    with pytest.raises(KeyStoreError, match="cannot be stored or read now"):
        await store.create(record())


async def test_damaged_records_are_reported(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "journal")
    store = SqliteKeyStore(storage)
    await store.load()
    await storage.run(lambda connection: connection.execute("INSERT INTO api_keys VALUES ('key_1', '{')"))
    with pytest.raises(KeyStoreError, match="damaged"):
        await store.load()
    await storage.close()
