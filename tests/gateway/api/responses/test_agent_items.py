"""gateway/api/responses/agent_items.py: items of responses with MCP servers."""

import pytest

from gateway.api.responses import mcp_setup
from tests.fakes.scripted_server import says
from tests.fakes.tool_gateway import asks_for
from tests.gateway.api.responses.mcp_gateway import OPEN, McpGateway, kinds


async def test_tools_run_until_the_model_answers(mcp: McpGateway) -> None:
    mcp.server.script = [
        asks_for(("t__add", '{"a": 1, "b": 2}'), ("t__put", '{"text": "<<x>>"}'), text="Let me see."),
        asks_for(("t__fail", "{}"), ("t__add", '{"a": 1}')),
        says("It is 3."),
    ]
    response = await mcp.create()
    listed, said, *calls, answer = response.output
    assert (listed.type, listed.server_label, listed.error) == ("mcp_list_tools", "t", None)
    assert {tool.name for tool in listed.tools} == {"add", "count", "fail", "put", "markup", "large"}
    assert (said.content[0].text, answer.content[0].text) == ("Let me see.", "It is 3.")
    assert [(call.type, call.server_label, call.name, call.output, call.status) for call in calls] == [
        ("mcp_call", "t", "add", "3", "completed"),
        ("mcp_call", "t", "put", "stored 5", "completed"),
        ("mcp_call", "t", "fail", None, "failed"),
        ("mcp_call", "t", "add", None, "failed"),
    ]
    failed, refused = (call.error for call in calls[2:])
    assert failed.type == "mcp_tool_execution_error"
    assert failed.content[0]["text"].startswith("tool t/fail failed: ")
    assert (refused.type, 'the property "b" is missing' in refused.message) == ("mcp_protocol_error", True)
    assert [message["content"] for message in mcp.server.asked[1]["messages"][-2:]] == ["3", "stored 5"]
    assert (response.status, mcp.unfinished()) == ("completed", 0)
    assert response.tools[0].server_label == "t"


async def test_events(mcp: McpGateway) -> None:
    mcp.server.script = [asks_for(("t__add", '{"a": 1, "b": 2}'), ("t__fail", "{}")), says("3!")]
    events = [event async for event in await mcp.create(stream=True)]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [(event.type.removeprefix("response."), getattr(event, "output_index", None)) for event in events] == [
        ("created", None),
        ("in_progress", None),
        ("output_item.added", 0),
        ("mcp_list_tools.in_progress", 0),
        ("mcp_list_tools.completed", 0),
        ("output_item.done", 0),
        ("output_item.added", 1),
        ("mcp_call.in_progress", 1),
        ("mcp_call_arguments.delta", 1),
        ("mcp_call_arguments.done", 1),
        ("output_item.added", 2),
        ("mcp_call.in_progress", 2),
        ("mcp_call_arguments.delta", 2),
        ("mcp_call_arguments.done", 2),
        ("mcp_call.completed", 1),
        ("output_item.done", 1),
        ("mcp_call.failed", 2),
        ("output_item.done", 2),
        ("output_item.added", 3),
        ("content_part.added", 3),
        ("output_text.delta", 3),
        ("output_text.done", 3),
        ("content_part.done", 3),
        ("output_item.done", 3),
        ("completed", None),
    ]
    final = events[-1].response
    assert [event.item for event in events if event.type == "response.output_item.done"] == final.output
    assert next(event.arguments for event in events if "arguments.done" in event.type) == '{"a": 1, "b": 2}'
    async with mcp.client.responses.with_streaming_response.retrieve(final.id, stream=True) as replayed:
        text = await replayed.text()
    again = [line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event: ")]
    assert set(again) == {event.type for event in events}


async def test_functions_of_the_client_end_the_response(mcp: McpGateway) -> None:
    look = {"type": "function", "name": "add", "parameters": {"type": "object", "properties": {}}, "strict": False}
    mcp.server.script = [asks_for(("add", "{}"), ("t__add", '{"a": 1, "b": 2}')), says("done")]
    first = await mcp.create(tools=[OPEN, look])
    assert kinds(first) == ["mcp_list_tools", "function_call", "mcp_call"]
    assert (first.output[1].name, first.output[2].output) == ("add", "3")
    result = {"type": "function_call_output", "call_id": first.output[1].call_id, "output": "seen"}
    second = await mcp.create(tools=[OPEN, look], input=[result], previous_response_id=first.id)
    assert kinds(second) == ["message"]
    assert len(mcp.server.asked) == 2


async def test_max_tool_calls(mcp: McpGateway) -> None:
    mcp.server.script = [
        asks_for(("t__add", '{"a": 1, "b": 2}')),
        asks_for(("t__add", '{"a": 2, "b": 2}'), ("t__add", '{"a": 3, "b": 2}')),
        says("enough"),
    ]
    response = await mcp.create(max_tool_calls=2)
    assert kinds(response) == ["mcp_list_tools", "mcp_call", "mcp_call", "message"]
    assert mcp.server.asked[2]["messages"][-1]["content"] == "error: the maximum number of tool calls is reached"
    assert "tools" in mcp.server.asked[1]
    assert "tools" not in mcp.server.asked[2]


async def test_a_model_that_never_stops(mcp: McpGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp_setup, "MAX_TURNS", 4)
    mcp.server.always = asks_for(("t__add", '{"a": 1, "b": 2}'))
    response = await mcp.create()
    assert kinds(response)[:4] == ["mcp_list_tools", "mcp_call", "mcp_call", "mcp_call"]
    assert "tools" not in mcp.server.asked[3]
    assert (len(mcp.server.asked), response.status) == (4, "completed")
