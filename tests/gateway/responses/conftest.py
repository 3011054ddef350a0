"""Fixtures: response stores of every kind."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.journal import FileStorage, PostgresStorage
from gateway.responses import (
    MemoryDatabase,
    PostgresResponseStore,
    ResponseStore,
    SqliteResponseStore,
)
from tests.gateway.responses.stored_responses import DAY, Open


@pytest.fixture(params=["memory", "file", "postgres"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Return a context manager that opens a store. Responses survive its end, except in memory."""
    url = request.getfixturevalue("postgres").database() if request.param == "postgres" else ""

    @asynccontextmanager
    async def store(max_bytes: int = 1 << 20, ttl: float = DAY) -> AsyncIterator[ResponseStore]:
        if request.param == "postgres":
            storage = PostgresStorage(url, 10.0, lambda: None)
            await storage.start()
            yield await PostgresResponseStore.open(storage, max_bytes, ttl)
            await storage.close()
        elif request.param == "file":
            file = FileStorage(tmp_path / "journal")
            assert list(file.rows()) == []
            sqlite_store = SqliteResponseStore(file, max_bytes, ttl, owns=False)
            yield sqlite_store
            await sqlite_store.close()
            await file.close()
        else:
            sqlite_store = SqliteResponseStore(MemoryDatabase(), max_bytes, ttl, owns=True)
            yield sqlite_store
            await sqlite_store.close()

    return store
