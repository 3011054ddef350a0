"""What tests of a running server share."""

from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.e2e.api import Api
from tests.server import Server


@pytest.fixture
async def api(server: Server) -> AsyncIterator[Api]:
    async with aiohttp.ClientSession(server.address) as http:
        api = Api(server, http)
        await api.call("POST", "/sessions", {"id": api.session})
        yield api
        await api.call("DELETE", f"/sessions/{api.session}")
        await api.openai.close()
