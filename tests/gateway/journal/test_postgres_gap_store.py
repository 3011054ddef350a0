"""gateway/journal/postgres_gap_store.py: learned durations that gateways share."""

import asyncio

import pytest

from gateway.journal.gap_store import GapStoreError, gaps_of
from gateway.journal.postgres_gap_store import PostgresGapStore
from tests.fakes.postgres_cluster import PostgresCluster
from tests.gateway.journal.gap_stores import (
    NOW,
    check_that_additions_join,
    check_that_old_rows_are_deleted,
    check_that_rows_are_bounded_fairly,
    check_that_tenants_are_forgotten,
    gap,
    stored,
)


async def test_additions_of_two_gateways_join(cluster: PostgresCluster) -> None:
    await check_that_additions_join(
        PostgresGapStore(await cluster.gateway("a")), PostgresGapStore(await cluster.gateway("b"))
    )


async def test_old_rows_are_deleted(cluster: PostgresCluster) -> None:
    await check_that_old_rows_are_deleted(PostgresGapStore(await cluster.gateway("a")))


async def test_tenants_are_forgotten(cluster: PostgresCluster) -> None:
    await check_that_tenants_are_forgotten(
        PostgresGapStore(await cluster.gateway("a")), PostgresGapStore(await cluster.gateway("b"))
    )


async def test_rows_are_bounded_and_each_tenant_has_its_share(cluster: PostgresCluster) -> None:
    await check_that_rows_are_bounded_fairly(PostgresGapStore(await cluster.gateway("a")))


async def test_parallel_additions_to_one_row_lose_nothing(cluster: PostgresCluster) -> None:
    stores = [PostgresGapStore(await cluster.gateway(f"g{number}")) for number in range(3)]
    for store in stores:
        await store.load(NOW)
    added = [gap(ended=NOW + number) for number in range(60)]
    await asyncio.gather(*(stores[number % 3].add([one]) for number, one in enumerate(added)))
    assert await stored(stores[0]) == added


async def test_a_damaged_row_is_counted_and_replaced(cluster: PostgresCluster) -> None:
    store = PostgresGapStore(await cluster.gateway("a"))
    await store.load(NOW)
    await cluster.query("INSERT INTO myna_tool_gaps VALUES ('t', 'w', $1, 'no JSON') RETURNING 1", NOW)
    assert gaps_of(await store.load(NOW)) == ([], 1)
    await store.add([gap()])
    assert await stored(store) == [gap()]


async def test_a_database_that_is_gone_is_reported(cluster: PostgresCluster) -> None:
    storage = await cluster.gateway("a")
    store = PostgresGapStore(storage)
    await store.load(NOW)
    await storage.close()
    for work in (store.load(NOW), store.add([gap()]), store.forget(["t"])):
        with pytest.raises(GapStoreError):
            await work
