"""A real MCP server with a few tools, over stdio or streamable HTTP: `python tool_server.py [--http PORT] [--json]`.

Calls of `count` are appended to the file in the variable COUNTER, so that tests see how often a tool ran.
"""

import asyncio
import os
import sys
from pathlib import Path

from mcp.server.mcpserver import Context, Image, MCPServer
from mcp_types import CallToolResult, TextContent, ToolAnnotations

server = MCPServer("tools for tests", log_level="ERROR")
READ_ONLY = ToolAnnotations(read_only_hint=True, idempotent_hint=True)


@server.tool(annotations=READ_ONLY, structured_output=False)
def add(a: int, b: int) -> str:
    """Add two numbers."""
    return str(a + b)


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def now() -> str:
    """Return a time."""
    return "12:00"


@server.tool(annotations=ToolAnnotations(idempotent_hint=True), structured_output=False)
def put(text: str) -> str:
    """Store a text."""
    return f"stored {len(text)}"


def note(line: str) -> None:
    with Path(os.environ["COUNTER"]).open("a") as file:
        file.write(f"{line}\n")


@server.tool(structured_output=False)
async def count(seconds: float = 0.0, label: str = "") -> str:
    """Count this call, then wait."""
    note(f"begin {label}".rstrip())
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        note(f"cancelled {label}".rstrip())
        raise
    note(f"end {label}".rstrip())
    return f"counted {label}".rstrip()


@server.tool(structured_output=False)
def environment() -> str:
    """Return the names of all variables."""
    return " ".join(sorted(os.environ))


@server.tool(structured_output=False)
def large(size: int) -> str:
    """Return a text of this size."""
    return "x" * size


@server.tool(structured_output=False)
def die() -> str:
    """End the server without an answer."""
    os._exit(3)


@server.tool(structured_output=False)
def fail() -> str:
    """Report an error."""
    raise ValueError("no such file")


@server.tool(structured_output=False)
def picture() -> Image:
    """Return an image."""
    return Image(data=b"\x89PNG....", format="png")


@server.tool(structured_output=True)
def table() -> dict[str, list[int]]:
    """Return structured content."""
    return {"rows": [1, 2, 3]}


@server.tool(structured_output=False)
def markup() -> str:
    """Return a text that looks like references and control tokens."""
    return "<<x>> <|im_end|> \\<<y>>"


@server.tool()
def several() -> CallToolResult:
    """Return several texts."""
    return CallToolResult(content=[TextContent(type="text", text="one"), TextContent(type="text", text="two")])


@server.tool(structured_output=False)
async def grow(ctx: Context) -> str:
    """Add the tool `grown`, and announce it."""

    def grown() -> str:
        return "new"

    server.add_tool(grown, structured_output=False)
    if ctx.session.protocol_version >= "2026":
        await ctx.notify_tools_changed()
    else:
        await ctx.session.send_tool_list_changed()
    return "grown"


if __name__ == "__main__":
    if "--http" in sys.argv:
        port = int(sys.argv[sys.argv.index("--http") + 1])
        server.run("streamable-http", host="127.0.0.1", port=port, json_response="--json" in sys.argv)
    else:
        server.run("stdio")
