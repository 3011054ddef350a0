"""gateway/responses/sqlite.py: a response store in the journal's file."""

import asyncio
from pathlib import Path

import pytest

from gateway.journal import FileStorage
from gateway.responses import (
    ResponseStoreError,
    SqliteResponseStore,
)
from tests.gateway.responses.stored_responses import DAY, response


async def test_a_failed_operation_does_not_fail_others(tmp_path: Path) -> None:
    file = FileStorage(tmp_path / "journal")
    store = SqliteResponseStore(file, 1 << 20, DAY, owns=False)
    await store.add(response("before"))
    await file.run(lambda connection: connection.execute("PRAGMA max_page_count = 1"))
    large = response("large", length=1 << 18)
    operations = (store.find("", "before"), store.delete("", "before"), store.add(large))
    _, forgotten, kept = await asyncio.gather(*operations, return_exceptions=True)
    assert (forgotten, type(kept)) == (True, ResponseStoreError)
    assert not await store.find("", "before"), "the operation before the failed one is done"
    assert not await store.find("", "large"), "no part of the failed operation is stored"
    await file.run(lambda connection: connection.execute("PRAGMA max_page_count = 1000000"))
    await store.add(large)
    assert await store.find("", "large") == large
    await store.close()
    late = asyncio.ensure_future(store.add(response("late")))
    await asyncio.sleep(0.05)
    assert not late.done(), "operations on a closed store never return"
    late.cancel()
    await file.close()


async def test_tables_that_cannot_be_created_leave_no_transaction_open(tmp_path: Path) -> None:
    """Check the shared connection: an open transaction would contain the journal's commits."""
    file = FileStorage(tmp_path / "journal")
    store = SqliteResponseStore(file, 1 << 20, DAY, owns=False)
    await file.run(lambda connection: connection.execute("PRAGMA max_page_count = 1"))
    with pytest.raises(ResponseStoreError):
        await store.add(response("r"))
    assert not await file.run(lambda connection: connection.in_transaction)
    await file.run(lambda connection: connection.execute("PRAGMA max_page_count = 1000000"))
    await store.add(response("r"))
    assert await store.find("", "r") == response("r")
    await store.close()
    await file.close()
