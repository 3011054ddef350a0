"""gateway/accounts/keys/postgres_key_store.py: keys that gateways share."""

import asyncio

import pytest

from gateway.accounts.errors import KeyStoreError
from gateway.accounts.keys.key_store import KeyChange
from gateway.accounts.keys.postgres_key_store import PostgresKeyStore
from gateway.accounts.keys.virtual_key import KeyRecord
from tests.fakes.postgres_cluster import PostgresCluster


def record(id: str = "key_1", **fields: object) -> KeyRecord:
    return KeyRecord(id=id, digest="00" * 32, created=1, **fields)  # type: ignore[arg-type]


async def stores(cluster: PostgresCluster, count: int = 2) -> list[PostgresKeyStore]:
    found = [PostgresKeyStore(await cluster.gateway(f"g{number}")) for number in range(count)]
    for store in found:
        assert await store.load() == []
    return found


async def test_each_gateway_learns_about_each_change_once(cluster: PostgresCluster) -> None:
    first, second = await stores(cluster)
    changed = record(rpm=1)
    await first.create(record())
    await first.create(record("key_2"))
    assert await first.replace(record(), changed)
    assert not await first.replace(record(), changed)
    await first.delete("key_2")
    for store in (first, second):
        assert dict(await store.changes()) == {"key_1": changed, "key_2": None}
        assert await store.changes() == []
    await second.delete("key_1")
    assert await first.changes() == [KeyChange("key_1", None)]
    later = PostgresKeyStore(await cluster.gateway("later"))
    assert await later.load() == []


async def test_parallel_changes_are_all_seen_by_all(cluster: PostgresCluster) -> None:
    found = await stores(cluster, 3)
    seen: list[set[str]] = [set(), set(), set()]

    async def create(number: int) -> None:
        await found[number % 3].create(record(f"key_{number}"))

    async def watch(number: int) -> None:
        while len(seen[number]) < 60:
            seen[number].update(id for id, _ in await found[number].changes())

    await asyncio.gather(*map(create, range(60)), *map(watch, range(3)))


async def test_of_two_changes_at_a_time_one_is_refused(cluster: PostgresCluster) -> None:
    first, second = await stores(cluster)
    await first.create(record())
    results = await asyncio.gather(
        first.replace(record(), record(rpm=1)), second.replace(record(), record(rpm=2)), return_exceptions=True
    )
    assert sorted(map(bool, results)) == [False, True]


@pytest.mark.parametrize("text", ["'; DROP TABLE myna_keys; --", "$1", '"\\', "\0", "é😀", "%s", "x" * 10_000])
async def test_texts_are_stored_as_they_are(text: str, cluster: PostgresCluster) -> None:
    first, second = await stores(cluster)
    stored = record(name=text, models=(text,), tags=(text,))
    await first.create(stored)
    assert await second.changes() == [KeyChange("key_1", stored)]
    assert await second.replace(stored, record(name=f"{text}2"))


async def test_ten_thousand_keys_are_loaded(cluster: PostgresCluster) -> None:
    await stores(cluster, 1)
    await cluster.query(
        'INSERT INTO myna_keys SELECT \'key_\' || n, \'{"id":"key_\' || n || \'","digest":"","created":1}\', '
        "nextval('myna_key_versions') FROM generate_series(1, 10000) AS n RETURNING 1"
    )
    later = PostgresKeyStore(await cluster.gateway("later"))
    assert len({record.id for record in await later.load()}) == 10_000


async def test_a_database_that_is_gone_is_reported(cluster: PostgresCluster) -> None:
    storage = await cluster.gateway("g")
    store = PostgresKeyStore(storage)
    await store.load()
    await storage.close()
    for work in (store.create(record()), store.delete("key_1"), store.changes(), store.load()):
        with pytest.raises(KeyStoreError):
            await work
