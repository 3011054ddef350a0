"""gateway/responses/postgres.py: a response store in PostgreSQL."""

import pytest

from gateway.journal import PostgresStorage
from gateway.responses import PostgresResponseStore, ResponseStoreError
from gateway.responses.store import StoredTurn
from tests.fakes.postgres_server import PostgresServer
from tests.gateway.responses.stored_responses import DAY, response


async def test_an_unavailable_database_raises_response_store_error(postgres: PostgresServer) -> None:
    storage = PostgresStorage(postgres.database(), 10.0, lambda: None)
    await storage.start()
    store = await PostgresResponseStore.open(storage, 1 << 20, DAY)
    await storage.close()
    with pytest.raises(ResponseStoreError):
        await store.add(response("r"), [StoredTurn(b'""', b'""', None)])
    with pytest.raises(ResponseStoreError):
        await store.find("", "r")
