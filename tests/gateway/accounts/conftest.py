"""Fixtures of tests of accounts."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.accounts.ledger.ledger import LedgerStorage
from gateway.accounts.ledger.postgres_ledger import PostgresLedger
from gateway.accounts.ledger.sqlite_ledger import SqliteLedger
from gateway.journal import PostgresStorage
from tests.fakes.postgres_server import PostgresServer


@pytest.fixture(params=["file", "memory", "postgres"])
async def ledger_storage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LedgerStorage]:
    """Yield an empty database of a ledger, of each kind."""
    if request.param != "postgres":
        ledger = SqliteLedger(tmp_path / "ledger.sqlite" if request.param == "file" else None)
        yield ledger
        await ledger.close()
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    storage = PostgresStorage(server.database(), 10.0, lambda: None)
    await storage.start()
    yield await PostgresLedger.open(storage)
    await storage.close()
