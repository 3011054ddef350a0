"""gateway/api/responses/agent_events.py: responses with MCP servers while they are generated."""

import asyncio
from typing import Any

from tests.fakes.scripted_server import refuses, says
from tests.fakes.tool_gateway import asks_for
from tests.gateway.api.responses.mcp_gateway import McpGateway, kinds


async def test_a_response_in_the_background(mcp: McpGateway) -> None:
    mcp.server.script = [asks_for(("t__add", '{"a": 1, "b": 2}')), says("3")]
    response = await mcp.create(background=True)
    async with asyncio.timeout(30):
        while response.status in ("queued", "in_progress"):
            await asyncio.sleep(0.02)
            response = await mcp.client.responses.retrieve(response.id)
    assert (response.status, kinds(response)) == ("completed", ["mcp_list_tools", "mcp_call", "message"])
    assert response.output[1].output == "3"


async def test_a_client_that_leaves_ends_the_tool(mcp: McpGateway) -> None:
    mcp.server.script = [asks_for(("t__count", '{"seconds": 600}'))]
    stream = await mcp.create(stream=True)
    async for event in stream:
        if event.type == "response.mcp_call_arguments.done":
            break
    async with asyncio.timeout(30):
        while not mcp.counter.exists():
            await asyncio.sleep(0.01)
        await stream.close()
        while "cancelled" not in mcp.counter.read_text() or mcp.unfinished():
            await asyncio.sleep(0.01)


async def test_a_failure_ends_the_stream(mcp: McpGateway) -> None:
    mcp.server.script = [asks_for(("t__add", '{"a": 1, "b": 2}')), refuses(400, "too hot")]
    events = [event async for event in await mcp.create(stream=True)]
    assert events[-1].type == "response.failed"
    assert "too hot" in events[-1].response.error.message
    assert kinds(events[-1].response) == ["mcp_list_tools", "mcp_call"]


async def test_a_deferred_response(mcp: McpGateway) -> None:
    mcp.server.script = [asks_for(("t__add", '{"a": 1, "b": 2}')), says("3")]
    async with mcp.http.post("/v1/sessions", json={"id": "s"}) as answer:
        assert answer.status < 300
    response = await mcp.create(extra_body={"semantic": {"session": "s", "output": "end", "defer": True}})
    assert response.output[-1].content[0].text == "<<end>>"
    async with mcp.http.get("/v1/sessions/s/variables/end?wait=true") as answer:
        assert (await answer.json())["value"] == "3"


async def test_a_websocket(mcp: McpGateway) -> None:
    mcp.server.script = [asks_for(("t__count", "{}")), says("counted")]
    request: dict[str, Any] = {"model": "fake", "tools": [{"type": "mcp", "server_label": "t"}], "store": False}
    responses = []
    async with mcp.client.responses.connect() as connection:
        more: dict[str, Any] = {"input": "count"}
        while len(responses) < 2:
            await connection.response.create(**request, **more)
            async for event in connection:
                assert event.type not in ("error", "response.failed"), event
                if event.type == "response.completed":
                    responses.append(event.response)
                    break
            asked: Any = responses[0].output[-1]
            answer = {"type": "mcp_approval_response", "approval_request_id": asked.id, "approve": True}
            more = {"input": [answer], "previous_response_id": responses[0].id}
    assert [kinds(response) for response in responses] == [
        ["mcp_list_tools", "mcp_approval_request"],
        ["mcp_call", "message"],
    ]


async def test_the_events_of_a_response_in_the_background(mcp: McpGateway) -> None:
    mcp.server.script = [asks_for(("t__add", '{"a": 1, "b": 2}'), ("t__count", '{"seconds": 0.1}')), says("3")]
    events = [event async for event in await mcp.create(background=True, stream=True)]
    again = await mcp.client.responses.retrieve(events[0].response.id, stream=True)
    assert [event async for event in again] == events
    assert kinds(events[-1].response) == ["mcp_list_tools", "mcp_call", "mcp_call", "message"]


async def test_a_cancelled_response_in_the_background(mcp: McpGateway) -> None:
    mcp.server.script = [asks_for(("t__count", '{"seconds": 600}'))]
    response = await mcp.create(background=True)
    async with asyncio.timeout(30):
        while not mcp.counter.exists():
            await asyncio.sleep(0.01)
        await mcp.client.responses.cancel(response.id)
        while mcp.unfinished() or "cancelled" not in mcp.counter.read_text():
            await asyncio.sleep(0.01)
    assert (await mcp.client.responses.retrieve(response.id)).status == "cancelled"
