"""A gateway with an MCP server, and the real openai client of it."""

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from openai import APIStatusError, AsyncOpenAI

from gateway.api.responses.mcp_history import USED_APPROVALS
from tests.fakes.in_process_gateway import GatewayClient, gateway_before
from tests.fakes.scripted_server import ScriptedServer
from tests.fakes.tool_servers import FOLDER

OPEN = {"type": "mcp", "server_label": "t", "require_approval": "never"}


class McpGateway:
    """A gateway with the MCP server `t`, an openai client of it, and the upstream server."""

    def __init__(
        self, client: AsyncOpenAI, http: GatewayClient, server: ScriptedServer, counter: Path, unfinished: Any
    ) -> None:
        self.client = client
        self.http = http
        self.server = server
        self.counter = counter
        self.unfinished = unfinished

    def forget_approvals(self) -> None:
        """Forget what this process knows of used approvals, as a restart does."""
        assert self.http.app is not None
        self.http.app[USED_APPROVALS]._used.clear()

    async def create(self, **fields: Any) -> Any:
        body: dict[str, Any] = {"model": "fake", "input": "1+2?", "tools": [OPEN], **fields}
        return await self.client.responses.create(**body)


@asynccontextmanager
async def mcp_gateway(folder: Path, api_key: Any = (), **more: Any) -> AsyncIterator[McpGateway]:
    """Run a gateway. `more`: further keys of the file of tool servers."""
    counter, path = folder / "count", folder / "tools.json"
    server_settings = {
        "command": [sys.executable, str(FOLDER / "tool_server.py")],
        "env": {"COUNTER": str(counter)},
        "tools": ["add", "count", "fail", "put", "markup", "large"],
        "result_bytes": 1000,
    }
    gone = {"command": [sys.executable, "-c", "pass"], "tools": ["*"], "start_seconds": 5}
    path.write_text(json.dumps({"servers": {"t": server_settings, "gone": gone}, **more}))
    async with (
        ScriptedServer() as server,
        gateway_before(server, tool_servers=path, api_key=list(api_key)) as (http, unfinished),
        AsyncOpenAI(base_url=str(http.make_url("/v1")), api_key="k", max_retries=0) as client,
    ):
        yield McpGateway(client, http, server, counter, unfinished)


def kinds(response: Any) -> list[str]:
    """Return the types of a response's items."""
    return [item.type for item in response.output]


async def refused(mcp: McpGateway, status: int, code: str | None, **fields: Any) -> APIStatusError:
    """Send a request that is refused, and return the error."""
    with pytest.raises(APIStatusError) as caught:
        await mcp.create(**fields)
    error = caught.value
    assert (error.status_code, error.code) == (status, code), error.message
    return error
