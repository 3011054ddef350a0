"""Fixtures: a scripted upstream server, and the connection to it."""

from collections.abc import AsyncIterator

import pytest

from gateway.engines.openai import Upstream
from tests.fakes.scripted_server import ScriptedServer
from tests.gateway.engines.openai.upstream_requests import connected


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    async with ScriptedServer() as server:
        yield server


@pytest.fixture
async def upstream(server: ScriptedServer) -> AsyncIterator[Upstream]:
    upstream = await connected(server, timeout=0.5)
    yield upstream
    await upstream.close()
