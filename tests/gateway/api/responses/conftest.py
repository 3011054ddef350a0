"""Fixtures of the Responses API."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.gateway.api.responses.mcp_gateway import McpGateway, mcp_gateway


@pytest.fixture
async def mcp(tmp_path: Path) -> AsyncIterator[McpGateway]:
    """Run a gateway with an MCP server `t`."""
    async with mcp_gateway(tmp_path) as gateway:
        yield gateway
