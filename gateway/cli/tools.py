"""The command `myna tools FILE`: connect to the MCP servers of a file, and list their allowed tools."""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gateway.cli.server_client import as_table, print_text
from gateway.config.tool_servers import ToolSettings, read_tool_servers
from gateway.tools.protocol import ToolFailed
from gateway.tools.tool_servers import ToolServers


def tools(arguments: Sequence[str]) -> int:
    """Print each server with its state and its allowed tools. Return the exit status: 1 if a server is not reachable or
    has no allowed tool, 2 if the file is invalid."""
    parser = argparse.ArgumentParser(
        prog="myna tools",
        description="Start or reach each MCP server of a file, and list its allowed tools.",
        allow_abbrev=False,
    )
    parser.add_argument("file", type=Path, help="JSON file as for myna serve --tool-servers")
    parser.add_argument(
        "--json", action="store_true", help="print JSON, with the descriptions and schemas of the tools"
    )
    options = parser.parse_args(arguments)
    try:
        settings = read_tool_servers(options.file)
    except (OSError, ValueError) as error:
        print(f"myna tools: {error}", file=sys.stderr)
        return 2
    found = asyncio.run(_examine(settings))
    print_text(json.dumps(found, indent=2) if options.json else _as_text(found))
    return 0 if all(server["error"] is None and server["tools"] for server in found) else 1


async def _examine(settings: ToolSettings) -> list[dict[str, Any]]:
    """Return each server with its tools, or the reason for which it is not reachable."""
    servers = ToolServers(settings)
    servers.start()
    try:
        return list(await asyncio.gather(*(_examine_server(servers, name) for name in servers.names)))
    finally:
        await servers.close()


async def _examine_server(servers: ToolServers, name: str) -> dict[str, Any]:
    try:
        found = await servers.describe(name)
    except ToolFailed as error:
        return {"server": name, "error": str(error).removeprefix(f"tool server {name}: "), "tools": []}
    tools = [
        {
            "name": tool.name,
            "description": tool.description,
            "input_schema": tool.input_schema,
            "read_only": tool.is_read_only,
            "idempotent": tool.is_idempotent,
        }
        for tool in found
    ]
    return {"server": name, "error": None, "tools": tools}


def _as_text(found: Sequence[dict[str, Any]]) -> str:
    rows = [("server", "state", "tool", "read-only", "idempotent")]
    for server in found:
        if server["error"] is not None:
            rows.append((server["server"], server["error"], "-", "-", "-"))
        elif not server["tools"]:
            rows.append((server["server"], "reachable, but no tool is allowed", "-", "-", "-"))
        for tool in server["tools"]:
            flags = ("yes" if tool[flag] else "no" for flag in ("read_only", "idempotent"))
            rows.append((server["server"], "reachable", tool["name"], *flags))
    return as_table(rows) if found else "the file has no servers"
