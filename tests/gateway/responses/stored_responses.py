"""Helpers of tests of response stores."""

import sqlite3
from collections.abc import Callable
from typing import Any

from gateway.responses import (
    PostgresResponseStore,
    ResponseStore,
    SqliteResponseStore,
    StoredResponse,
)

Open = Callable[..., Any]
DAY = 86_400.0


def response(id: str, before: str | None = None, length: int = 10, **more: Any) -> StoredResponse:
    tenant = more.pop("tenant", "")
    return StoredResponse(tenant, id, f'"asked {id}"'.encode(), f'"{"x" * length}"'.encode(), before, **more)


async def inputs_of(store: ResponseStore, id: str, tenant: str = "") -> list[str]:
    """Return the inputs of the conversation that ends with a response."""
    return [turn.input.decode().strip('"').removeprefix("asked ") for turn in await store.load_conversation(tenant, id)]


async def rows(store: ResponseStore) -> list[tuple[Any, ...]]:
    """Return all rows of the store."""
    query = "SELECT number, before, found, followers, size FROM {} ORDER BY number"
    if isinstance(store, PostgresResponseStore):
        async with store._storage.transaction() as connection:
            return [tuple(row) for row in await connection.fetch(query.format("myna_responses"))]
    assert isinstance(store, SqliteResponseStore)

    def look(connection: sqlite3.Connection) -> list[tuple[Any, ...]]:
        found = connection.execute(query.format("responses")).fetchall()
        assert connection.execute("SELECT total FROM responses_bytes").fetchone() == (sum(row[-1] for row in found),)
        return found

    return await store._submit(look)
