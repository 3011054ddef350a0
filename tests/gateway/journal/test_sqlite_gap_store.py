"""gateway/journal/sqlite_gap_store.py: learned durations in the journal's file."""

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.journal import FileStorage
from gateway.journal.gap_store import GapStoreError, gaps_of
from gateway.journal.sqlite_gap_store import SqliteGapStore
from tests.gateway.journal.gap_stores import (
    NOW,
    check_that_additions_join,
    check_that_old_rows_are_deleted,
    check_that_rows_are_bounded_fairly,
    check_that_tenants_are_forgotten,
    gap,
    stored,
)


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[FileStorage]:
    storage = FileStorage(tmp_path / "journal")
    assert list(storage.rows()) == []
    yield storage
    await storage.close()


async def test_additions_join_what_is_stored(storage: FileStorage) -> None:
    await check_that_additions_join(SqliteGapStore(storage), SqliteGapStore(storage))


async def test_old_rows_are_deleted(storage: FileStorage) -> None:
    await check_that_old_rows_are_deleted(SqliteGapStore(storage))


async def test_tenants_are_forgotten(storage: FileStorage) -> None:
    await check_that_tenants_are_forgotten(SqliteGapStore(storage), SqliteGapStore(storage))


async def test_rows_are_bounded_and_each_tenant_has_its_share(storage: FileStorage) -> None:
    await check_that_rows_are_bounded_fairly(SqliteGapStore(storage))


async def test_durations_survive_a_restart_beside_the_journal(tmp_path: Path) -> None:
    for start in range(2):
        storage = FileStorage(tmp_path / "journal")
        assert list(storage.rows()) == []
        store = SqliteGapStore(storage)
        assert await stored(store) == [gap()] * start
        await store.add([gap()])
        await storage.close()


async def test_a_failed_addition_leaves_no_open_transaction(storage: FileStorage) -> None:
    store = SqliteGapStore(storage)
    with pytest.raises(GapStoreError, match="no such table"):
        await store.add([gap()])
    await store.load(NOW)
    await store.add([gap()])
    assert await stored(store) == [gap()]


async def test_a_row_of_another_type_is_damaged_and_replaced(storage: FileStorage) -> None:
    store = SqliteGapStore(storage)
    await store.load(NOW)

    def damage(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO tool_gaps VALUES ('t', 'w', ?, x'ff')", (NOW,))

    await storage.run(damage)
    assert gaps_of(await store.load(NOW)) == ([], 1)
    await store.add([gap()])
    assert await stored(store) == [gap()]


async def test_a_closed_file_is_reported(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "journal")
    store = SqliteGapStore(storage)
    await store.load(NOW)
    await storage.close()
    for work in (store.add([gap()]), store.forget(["t"])):
        with pytest.raises(GapStoreError):
            await work
