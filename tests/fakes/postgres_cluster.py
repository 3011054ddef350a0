"""A PostgreSQL database with gateways, for tests of the journal and of the cluster."""

from contextlib import AsyncExitStack
from typing import Any

import asyncpg

from gateway.journal import PostgresStorage
from gateway.journal.storage import Batch, Entry, NewSession


def entry(key: int, first: int, facts: str = "[]") -> Entry:
    return Entry(key, first, f"[{key},{facts}]".encode())


async def content(storage: PostgresStorage, key: int) -> list[tuple[int, str]]:
    return [(first, bytes(facts).decode()) for first, rows in await storage.rows(key) for _, facts in rows]


class PostgresCluster:
    """A PostgreSQL database, and gateways that store sessions in it."""

    def __init__(self, url: str, stack: AsyncExitStack) -> None:
        self.url = url
        self.stack = stack
        self.lost: list[str] = []

    async def gateway(self, name: str, lease: float = 60.0, host: str = "here") -> PostgresStorage:
        storage = PostgresStorage(self.url, lease, lambda: self.lost.append(name))
        await storage.start()
        self.stack.push_async_callback(storage.close)
        await storage.join(f"http://{name}", host)
        return storage

    async def session(self, storage: PostgresStorage, id: str) -> int:
        """Claim a session id and store a first fact under it. Return the session's key."""
        assert await storage.claim("t", id)
        key = storage.new_key()
        await storage.commit(Batch([entry(key, 0)], [], [], [NewSession(key, "t", id)]))
        return key

    async def query(self, text: str, *arguments: Any) -> Any:
        connection = await asyncpg.connect(self.url)
        try:
            return await connection.fetchval(text, *arguments)
        finally:
            await connection.close()

    async def expire_lease(self, storage: PostgresStorage) -> None:
        """End the lease of a gateway."""
        await self.query(
            "UPDATE myna_gateways SET until = now() - interval '1 s' WHERE id = $1 RETURNING 1", storage.gateway
        )
