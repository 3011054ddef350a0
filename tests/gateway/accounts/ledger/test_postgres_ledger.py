"""gateway/accounts/ledger/postgres_ledger.py. tests/gateway/accounts/ledger/test_ledger.py tests its answers."""

import asyncio

import pytest

from gateway.accounts.ledger.postgres_ledger import PostgresLedger
from gateway.accounts.ledger.usage_query import LedgerError, UsageQuery
from gateway.journal import PostgresStorage
from tests.fakes.postgres_server import PostgresServer
from tests.gateway.accounts.spends import spend


async def test_gateways_share_the_ledger_and_count_each_row_once(postgres: PostgresServer) -> None:
    url = postgres.database()
    storages = [PostgresStorage(url, 10.0, lambda: None) for _ in range(2)]
    for storage in storages:
        await storage.start()
    first, second = [await PostgresLedger.open(storage) for storage in storages]
    rows = [spend(f"r{number}") for number in range(3_000)]
    await asyncio.gather(first.insert(rows), second.insert(rows[1_000:]), second.insert([spend("other")]))
    (total,) = await second.sums(UsageQuery((), 0, 1e12))
    assert (total.calls, total.prompt, total.cost) == (3_001, 30_010, 750.25)
    for storage in storages:
        await storage.close()
    with pytest.raises(LedgerError):
        await first.insert(rows)
