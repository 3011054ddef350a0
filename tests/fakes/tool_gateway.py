"""A gateway with an MCP server, before a scripted upstream server, and requests for it."""

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.fakes.in_process_gateway import GatewayClient, ScriptedGateway, gateway_before
from tests.fakes.scripted_server import Behaviour, ScriptedServer, chunk, stream

_SERVER = Path(__file__).parent / "tool_server.py"


def write_settings(folder: Path) -> Path:
    """Write the file of a tool server `t`, which counts runs in the file `count`. Return its path."""
    table = {
        "command": [sys.executable, str(_SERVER)],
        "env": {"COUNTER": str(folder / "count")},
        "tools": ["add", "count", "fail", "put", "markup", "large"],
        "result_bytes": 1000,
    }
    path = folder / "tools.json"
    path.write_text(json.dumps({"servers": {"t": table}}))
    return path


@asynccontextmanager
async def tool_gateway(folder: Path) -> AsyncIterator[ScriptedGateway]:
    """Yield a gateway with a tool server `t`. `folder`: for its files."""
    path = write_settings(folder)
    async with ScriptedServer() as server, gateway_before(server, tool_servers=path) as (client, unfinished):
        yield client, server, unfinished


def tool(name: str, output: str = "text", /, **arguments: Any) -> dict[str, Any]:
    """Return a run of a tool."""
    return {"tool": {"server": "t", "name": name, "arguments": arguments}, "output": output}


def call(text: str, output: str, **more: Any) -> dict[str, Any]:
    """Return a call of a graph."""
    message = {"role": "user", "content": text}
    return {"model": "fake", "messages": [message], "semantic": {"output": output}, **more}


async def send(client: GatewayClient, **body: Any) -> tuple[int, Any]:
    """Send a graph. Return status and body of the answer."""
    async with client.post("/v1/graphs", json=body) as answer:
        return answer.status, await answer.json()


def asks_for(*calls: tuple[str, Any], text: str = "") -> Behaviour:
    """Return a behaviour that answers with tool calls."""

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        deltas = [
            {"index": index, "id": f"x{index}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for index, (name, arguments) in enumerate(calls)
        ]
        first = chunk(body, text or None)
        first["choices"][0]["delta"]["tool_calls"] = deltas
        return await stream(request, [first, chunk(body, None, "tool_calls")])

    return behave


def agent(text: str, *tools: str, **more: Any) -> dict[str, Any]:
    """Return an agent."""
    body = {"model": "fake", "messages": [{"role": "user", "content": text}], "tools": list(tools), **more}
    return {"agent": body, "output": "answer"}
