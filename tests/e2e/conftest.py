"""Fixtures of tests that use a running server."""

from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.e2e.session_client import SessionClient
from tests.fakes.gateway_harness import GatewayHarness


@pytest.fixture
async def api(server: GatewayHarness) -> AsyncIterator[SessionClient]:
    async with aiohttp.ClientSession(server.address) as http:
        api = SessionClient(server, http)
        await api.call("POST", "/sessions", {"id": api.session})
        yield api
        await api.call("DELETE", f"/sessions/{api.session}")
        await api.openai.close()
