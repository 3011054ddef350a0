"""gateway/accounts/keys/key_store.py: keys of a server without a journal."""

from gateway.accounts.keys.key_store import MemoryKeyStore
from gateway.accounts.keys.virtual_key import KeyRecord


async def test_the_storage_in_memory_accepts_each_change_and_has_none_of_others() -> None:
    store, record = MemoryKeyStore(), KeyRecord(id="key_1", digest="00", created=1)
    await store.create(record)
    assert await store.replace(record, record)
    await store.delete("key_1")
    assert [*await store.load(), *await store.changes()] == []
