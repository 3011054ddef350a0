"""Responses with MCP servers: the default model, and a gateway that is killed."""

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.fakes.gateway_harness import MODEL, GatewayHarness
from tests.fakes.scripted_server import ScriptedServer, says
from tests.fakes.tool_gateway import asks_for
from tests.fakes.tool_servers import FOLDER

pytestmark = pytest.mark.waits


def tools_file(folder: Path) -> Path:
    settings = {
        "command": [sys.executable, str(FOLDER / "tool_server.py")],
        "env": {"COUNTER": str(folder / "count")},
        "tools": ["add", "count"],
    }
    path = folder / "tools.json"
    path.write_text(json.dumps({"servers": {"t": settings}}))
    return path


def test_the_default_model_calls_a_tool(tmp_path: Path) -> None:
    tool: dict[str, Any] = {"type": "mcp", "server_label": "t", "allowed_tools": ["add"]}
    options: dict[str, Any] = {
        "model": MODEL,
        "input": "What is 17 plus 4?",
        "tool_choice": "required",
        "temperature": 0,
        "max_output_tokens": 100,
    }
    with GatewayHarness("--tool-servers", str(tools_file(tmp_path)), "--journal", "memory") as server:
        client = server.client()
        events = list(client.responses.create(tools=[{**tool, "require_approval": "never"}], stream=True, **options))
        last: Any = events[-1]
        assert last.type == "response.completed"
        listed, call, *_ = last.response.output
        assert (listed.type, [each.name for each in listed.tools]) == ("mcp_list_tools", ["add"])
        assert (call.type, call.name, call.status) == ("mcp_call", "add", "completed")
        arguments = json.loads(call.arguments)
        assert call.output == str(arguments["a"] + arguments["b"])
        assert last.response.usage.output_tokens > 0
        asked: Any = client.responses.create(tools=[tool], **options)
        request = asked.output[-1]
        assert (request.type, request.name) == ("mcp_approval_request", "add")
        answer = {"type": "mcp_approval_response", "approval_request_id": request.id, "approve": True}
        options |= {"input": [answer], "tool_choice": "auto", "previous_response_id": asked.id}
        approved: Any = client.responses.create(tools=[tool], **options)
        assert (approved.output[0].type, approved.output[0].status) == ("mcp_call", "completed")
        assert approved.output[0].output == call.output, "the same model writes the same arguments"


async def test_a_response_in_the_background_survives_a_kill(tmp_path: Path) -> None:
    go_on, reached = asyncio.Event(), asyncio.Event()

    async def held(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        reached.set()
        await go_on.wait()
        return await says("never read")(request, body)

    tool = {"type": "mcp", "server_label": "t", "require_approval": "never"}
    async with ScriptedServer() as upstream:
        arguments = ("--engine", f"openai={upstream.url}", "--tool-servers", str(tools_file(tmp_path)))
        arguments = (*arguments, "--journal", str(tmp_path / "j"))
        upstream.script = [asks_for(("t__add", '{"a": 1, "b": 2}'), ("t__count", "{}")), held]
        server = await asyncio.to_thread(GatewayHarness, *arguments)
        body: dict[str, Any] = {"model": "fake", "input": "go", "tools": [tool], "background": True}
        try:
            response: Any = await asyncio.to_thread(lambda: server.client().responses.create(**body))
            await asyncio.wait_for(reached.wait(), 60)
        finally:
            await asyncio.to_thread(server.stop, signal.SIGKILL)
        go_on.set()
        upstream.always = says("It is 3.")
        server = await asyncio.to_thread(GatewayHarness, *arguments)
        try:
            client = server.client()
            async with asyncio.timeout(60):
                while (found := await asyncio.to_thread(client.responses.retrieve, response.id)).status != "completed":
                    assert found.status in ("queued", "in_progress"), found
                    await asyncio.sleep(0.05)
        finally:
            await asyncio.to_thread(server.stop)
    output: list[Any] = list(found.output)
    assert [item.type for item in output] == ["mcp_list_tools", "mcp_call", "mcp_call", "message"]
    assert [item.output for item in output[1:3]] == ["3", "counted"]
    assert output[3].content[0].text == "It is 3."
    assert (tmp_path / "count").read_text() == "begin\nend\n", "the tool ran once"
