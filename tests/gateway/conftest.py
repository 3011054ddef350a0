"""What tests of the gateway's rooms share."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from tests.gateway.town import Town
from tests.postgres import Postgres


@pytest.fixture
async def town(postgres: Postgres) -> AsyncIterator[Town]:
    async with AsyncExitStack() as stack:
        yield Town(postgres.database(), stack)
