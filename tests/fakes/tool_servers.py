"""Settings of the MCP servers of tests, and servers over HTTP that run during a test."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gateway.config.tool_servers import ToolServerTable, ToolSettings
from gateway.tools.tool_servers import ToolServers

FOLDER = Path(__file__).parent
START_SECONDS = 60.0
"""Time limit of the start of a server, which may share two cores with other tests."""


def real(counter: Path, **settings: Any) -> ToolServerTable:
    """Return the settings of the server of `tool_server.py`."""
    command = [sys.executable, str(FOLDER / "tool_server.py")]
    return table(command=command, env={"COUNTER": str(counter)}, **settings)


def hostile(behaviour: str, **settings: Any) -> ToolServerTable:
    """Return the settings of the server of `hostile_tool_server.py`."""
    return table(command=[sys.executable, str(FOLDER / "hostile_tool_server.py"), behaviour], **settings)


def table(**settings: Any) -> ToolServerTable:
    """Return settings that allow all tools."""
    return ToolServerTable(**{"tools": ["*"], "seconds": 30.0, "start_seconds": START_SECONDS, **settings})


class RunningToolServers(ToolServers):
    """Tool servers that run in an `async with` body."""

    def __init__(self, *patterns: Any, **servers: ToolServerTable) -> None:
        super().__init__(ToolSettings(servers, patterns))

    async def __aenter__(self) -> "RunningToolServers":
        self.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def text(self, server: str, name: str, tenant: str = "", **arguments: Any) -> str:
        """Call a tool and return its text."""
        return (await self.call(server, name, arguments, tenant=tenant)).text


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def http_tool_server(counter: Path, *options: str, port: int = 0) -> Iterator[str]:
    """Run the server of `tool_server.py` over HTTP. Yield its URL."""
    port = port or free_port()
    command = [sys.executable, str(FOLDER / "tool_server.py"), "--http", str(port), *options]
    process = subprocess.Popen(command, env={"COUNTER": str(counter)}, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.kill()
        process.wait(10)
