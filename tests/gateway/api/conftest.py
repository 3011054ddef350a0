"""Fixtures of tests of the API."""

from collections.abc import AsyncIterator

import pytest

from tests.fakes.in_process_gateway import ScriptedGateway, gateway_before
from tests.fakes.scripted_server import ScriptedServer


@pytest.fixture
async def scripted_gateway() -> AsyncIterator[ScriptedGateway]:
    """Yield a client of a gateway, its upstream server, and a function that counts unfinished calls."""
    async with ScriptedServer() as server, gateway_before(server) as (client, unfinished):
        yield client, server, unfinished
