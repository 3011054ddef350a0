"""Fixtures of the gateway's tests."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from tests.fakes.postgres_cluster import PostgresCluster
from tests.fakes.postgres_server import PostgresServer


@pytest.fixture
async def cluster(postgres: PostgresServer) -> AsyncIterator[PostgresCluster]:
    async with AsyncExitStack() as stack:
        yield PostgresCluster(postgres.database(), stack)
