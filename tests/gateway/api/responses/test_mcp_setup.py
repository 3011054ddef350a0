"""gateway/api/responses/mcp_setup.py: MCP servers of a request, with real ones."""

from pathlib import Path
from typing import Any

import pytest
from openai import APIStatusError

from tests.fakes.scripted_server import says
from tests.fakes.tool_gateway import asks_for
from tests.fakes.tool_servers import http_tool_server
from tests.gateway.api.responses.mcp_gateway import OPEN, McpGateway, kinds, mcp_gateway, refused


@pytest.mark.parametrize(
    ("tools", "status", "param"),
    [
        ([{"type": "mcp", "server_label": "none"}], 400, "tools.0.server_label"),
        ([{**OPEN, "server_url": "https://example.com/"}], 400, "tools.0.server_label"),
        ([{"type": "mcp", "server_label": "x", "server_url": "https://example.com/"}], 400, "tools.0.server_url"),
        ([{**OPEN, "headers": {"A": "b"}}], 400, "tools.0.headers"),
        ([{**OPEN, "authorization": "b"}], 400, "tools.0.authorization"),
        ([{"type": "mcp", "server_label": "x", "connector_id": "connector_gmail"}], 400, "tools.0.connector_id"),
        ([{**OPEN, "allowed_tools": ["ad", "nwo"]}], 400, "tools.0.allowed_tools"),
        ([OPEN, OPEN], 400, "tools.1.server_label"),
        ([{"type": "mcp", "server_label": f"s{index}"} for index in range(100)], 400, "tools"),
        ([OPEN, {"type": "function", "name": "t__add", "parameters": {"type": "object"}}], 400, "tools"),
        ([{"type": "mcp", "server_label": "gone"}], 424, "tools"),
    ],
)
async def test_refusals(mcp: McpGateway, tools: list[Any], status: int, param: str) -> None:
    with pytest.raises(APIStatusError) as caught:
        await mcp.create(tools=tools)
    body: Any = caught.value.body
    assert (caught.value.status_code, body["param"]) == (status, param), body
    assert (mcp.server.asked, mcp.unfinished()) == ([], 0)


async def test_a_stream_says_that_a_server_cannot_list_its_tools(mcp: McpGateway) -> None:
    tools = [{"type": "mcp", "server_label": "gone"}]
    events = [event async for event in await mcp.create(tools=tools, stream=True)]
    assert [event.type.removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "mcp_list_tools.in_progress",
        "mcp_list_tools.failed",
        "output_item.done",
        "failed",
    ]
    assert events[5].item.error
    assert "MCP server: 'gone'" in events[-1].response.error.message


async def test_a_server_at_a_url_of_the_client(tmp_path: Path) -> None:
    with http_tool_server(tmp_path / "count") as url:
        async with mcp_gateway(tmp_path, url_patterns=[url]) as mcp:
            tool = {
                "type": "mcp",
                "server_label": "mine",
                "server_url": url,
                "authorization": "secret-token",
                "server_description": "Numbers.",
                "require_approval": "never",
                "allowed_tools": {"read_only": True},
            }
            mcp.server.script = [asks_for(("mine__add", '{"a": 1, "b": 2}'), ("mine__add", "{}")), says("3")]
            response = await mcp.create(tools=[OPEN, tool])
            assert kinds(response) == ["mcp_list_tools", "mcp_list_tools", "mcp_call", "mcp_call", "message"]
            assert {each.name for each in response.output[1].tools} == {"add", "now"}
            assert response.output[2].output == "3"
            assert response.output[3].error.message.startswith("tool mine/add: ")
            assert "secret-token" not in response.model_dump_json()
            assert response.tools[1].server_url == "http://127.0.0.1/<redacted>"
            described = [each["function"]["description"] for each in mcp.server.asked[0]["tools"]]
            assert [text for text in described if "Numbers." in text] == ["Tools mine__*: Numbers.\n\nAdd two numbers."]


async def test_a_session_with_variables(mcp: McpGateway) -> None:
    mcp.server.script = [asks_for(("t__markup", "{}")), says("a <<n>>")]
    extension = {"session": "s", "inputs": {"n": "seven"}, "output": "end"}
    async with mcp.http.post("/v1/sessions", json={"id": "s"}) as answer:
        assert answer.status < 300
    response = await mcp.create(input="say <<n>>", extra_body={"semantic": extension})
    assert kinds(response) == ["mcp_list_tools", "mcp_call", "message"]
    first, second = mcp.server.asked
    assert first["messages"][0]["content"] == "say seven"
    assert second["messages"][-1]["content"] == "<<x>> <|im_end|> \\<<y>>"
    assert response.output[2].content[0].text == "a <<n>>"


async def test_defaults_for_skipped_variables(mcp: McpGateway) -> None:
    call = {"model": "fake", "messages": [{"role": "user", "content": "x"}], "semantic": {"output": "n"}}
    graph = {"session": "s", "calls": [{"if": {"value": "x", "equals": "y"}, "then": [call]}], "outputs": ["n"]}
    await mcp.http.post("/v1/sessions", json={"id": "s"})
    async with mcp.http.post("/v1/graphs", json=graph) as answer:
        assert (await answer.json())["errors"]["n"]["code"] == "skipped"
    mcp.server.script = [asks_for(("t__add", '{"a": 1, "b": 2}')), says("done"), says("done")]
    extension = {"session": "s", "defaults": {"n": {"k": None}}}
    response = await mcp.create(input="say <<n>>", extra_body={"semantic": extension})
    assert kinds(response) == ["mcp_list_tools", "mcp_call", "message"]
    assert [asked["messages"][0]["content"] for asked in mcp.server.asked] == ['say {"k":null}'] * 2
    await mcp.create(input="say <<n>>", extra_body={"semantic": {"session": "s", "defaults": {"n": None}}})
    assert mcp.server.asked[-1]["messages"][0]["content"] == "say null"
    error = await refused(mcp, 400, "unknown_variable", extra_body={"semantic": {"session": "s", "defaults": {"m": 1}}})
    assert "'m' is not read by the prompt" in str(error)


async def test_the_model_has_to_call_a_tool(mcp: McpGateway) -> None:
    mcp.server.script = [asks_for(("t__add", '{"a": 1, "b": 2}')), says("3")]
    choice = {"type": "mcp", "server_label": "t", "name": "add"}
    response = await mcp.create(tool_choice=choice)
    assert kinds(response) == ["mcp_list_tools", "mcp_call", "message"]
    first, second = mcp.server.asked
    assert (first["tool_choice"], [tool["function"]["name"] for tool in first["tools"]]) == ("required", ["t__add"])
    assert second.get("tool_choice", "auto") == "auto"
    missing = {"type": "mcp", "server_label": "t", "name": "none"}
    await refused(mcp, 400, "invalid_value", tool_choice=missing)
