"""gateway/accounts/ledger/postgres_ledger.py. tests/gateway/accounts/ledger/test_ledger.py tests its answers."""

import asyncio

import pytest

from gateway.accounts.ledger.postgres_ledger import PostgresLedger
from gateway.accounts.ledger.spend import storable_row
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


async def test_a_table_of_an_earlier_version_gets_the_new_columns(postgres: PostgresServer) -> None:
    """Gateways of the earlier version add rows meanwhile."""
    storage = PostgresStorage(postgres.database(), 10.0, lambda: None)
    await storage.start()
    texts, numbers = ("key", "session", "model", "engine", "state"), ("prompt", "cached", "completion", "reasoning")
    columns = [f"{name} text" for name in texts] + [f"{name} bigint" for name in (*numbers, "lost")]
    columns = ["id text PRIMARY KEY", "ended double precision", *columns, "cost double precision", "tags text"]
    values = ", ".join(f"${number}" for number in range(1, 15))
    async with storage.transaction() as connection:
        await connection.execute(f"CREATE TABLE myna_spend ({', '.join(f'{column} NOT NULL' for column in columns)})")
        await connection.execute(f"INSERT INTO myna_spend VALUES ({values})", *storable_row(spend("old"))[:14])
    for number in range(2):
        ledger = await PostgresLedger.open(storage)
        await ledger.insert([spend("old"), spend(f"new{number}", tool_calls=1, prompt=0)])
    async with storage.transaction() as connection:
        await connection.execute(f"INSERT INTO myna_spend VALUES ({values})", *storable_row(spend("late"))[:14])
    (total,) = await ledger.sums(UsageQuery((), 0, 1e12))
    assert (total.calls, total.tool_calls, total.prompt) == (2, 2, 20)
    await storage.close()
