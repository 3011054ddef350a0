"""gateway/api/responses/mcp_setup.py: responses with MCP servers, with a real MCP server and the real openai client."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from openai import APIStatusError, AsyncOpenAI

from gateway.api.responses import mcp_setup
from gateway.api.responses.mcp_history import USED_APPROVALS
from tests.fakes.in_process_gateway import GatewayClient, gateway_before
from tests.fakes.scripted_server import ScriptedServer, refuses, says
from tests.fakes.tool_gateway import asks_for
from tests.fakes.tool_servers import FOLDER, http_tool_server

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


@pytest.fixture
async def mcp(tmp_path: Path) -> AsyncIterator[McpGateway]:
    async with mcp_gateway(tmp_path) as gateway:
        yield gateway


def kinds(response: Any) -> list[str]:
    return [item.type for item in response.output]


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


async def test_a_client_approves_a_call(mcp: McpGateway) -> None:
    tools = [{**OPEN, "require_approval": {"never": {"tool_names": ["add"]}}}]
    mcp.server.script = [
        asks_for(("t__add", '{"a": 1, "b": 2}'), ("t__count", "{}"), ("t__put", '{"text": "a"}')),
        says("counted."),
    ]
    first = await mcp.create(tools=tools)
    assert kinds(first) == ["mcp_list_tools", "mcp_call", "mcp_approval_request", "mcp_approval_request"]
    assert not mcp.counter.exists(), "nothing runs without an approval"
    count, put = first.output[2:]
    assert (count.name, count.arguments, count.server_label) == ("count", "{}", "t")
    answers = [
        {"type": "mcp_approval_response", "approval_request_id": count.id, "approve": True},
        {"type": "mcp_approval_response", "approval_request_id": put.id, "approve": False, "reason": "too long"},
        {"role": "user", "content": "go on"},
    ]
    second = await mcp.create(tools=tools, input=answers, previous_response_id=first.id)
    assert kinds(second) == ["mcp_call", "message"], "the tools are not listed again"
    assert (second.output[0].output, second.output[0].approval_request_id) == ("counted", count.id)
    assert mcp.counter.read_text() == "begin\nend\n"
    seen = [(message["role"], message.get("content")) for message in mcp.server.asked[1]["messages"]]
    assert seen == [
        ("user", "1+2?"),
        ("assistant", None),
        ("tool", "3"),
        ("assistant", None),
        ("tool", "counted"),
        ("tool", "error: the user did not approve this call: too long"),
        ("user", "go on"),
    ]
    third = await mcp.create(tools=tools, input="thanks", previous_response_id=second.id)
    assert [message.get("content") for message in mcp.server.asked[2]["messages"]][4:] == [
        "counted",
        "error: the user did not approve this call: too long",
        "go on",
        "counted.",
        "thanks",
    ]
    assert kinds(third) == ["message"]
    await refused(mcp, 400, "approval_already_answered", tools=tools, input=answers[:1], previous_response_id=third.id)
    await refused(mcp, 409, "approval_already_answered", tools=tools, input=answers, previous_response_id=first.id)
    other = await mcp.create(input="x")
    await refused(mcp, 400, "approval_request_not_found", tools=tools, input=answers, previous_response_id=other.id)
    assert mcp.counter.read_text() == "begin\nend\n"
    mcp.forget_approvals()
    await refused(mcp, 409, "approval_already_answered", tools=tools, input=answers, previous_response_id=first.id)


async def refused(mcp: McpGateway, status: int, code: str | None, **fields: Any) -> Any:
    with pytest.raises(APIStatusError) as caught:
        await mcp.create(**fields)
    error = caught.value
    assert (error.status_code, error.code) == (status, code), error.message
    return error


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


async def test_a_response_in_the_background(mcp: McpGateway) -> None:
    mcp.server.script = [asks_for(("t__add", '{"a": 1, "b": 2}')), says("3")]
    response = await mcp.create(background=True)
    async with asyncio.timeout(30):
        while response.status in ("queued", "in_progress"):
            await asyncio.sleep(0.02)
            response = await mcp.client.responses.retrieve(response.id)
    assert (response.status, kinds(response)) == ("completed", ["mcp_list_tools", "mcp_call", "message"])
    assert response.output[1].output == "3"


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


@pytest.mark.parametrize(
    ("tools", "status", "param"),
    [
        ([{"type": "mcp", "server_label": "none"}], 400, "tools.0.server_label"),
        ([{**OPEN, "server_url": "https://example.com/"}], 400, "tools.0.server_label"),
        ([{"type": "mcp", "server_label": "x", "server_url": "https://example.com/"}], 400, "tools.0.server_url"),
        ([{**OPEN, "headers": {"A": "b"}}], 400, "tools.0.headers"),
        ([{**OPEN, "authorization": "b"}], 400, "tools.0.authorization"),
        ([{"type": "mcp", "server_label": "x", "connector_id": "connector_gmail"}], 400, "tools.0.connector_id"),
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


async def test_items_can_be_sent_back_by_a_client_that_stores_nothing(mcp: McpGateway) -> None:
    mcp.server.script = [
        asks_for(("t__add", '{"a": 1, "b": 2}'), ("t__markup", "{}")),
        asks_for(("t__put", "{}"), ("t__count", "{}")),
    ]
    tools = [{**OPEN, "require_approval": {"never": {"tool_names": ["add", "markup"]}}}]
    question = {"role": "user", "content": "q"}
    first = await mcp.create(input=[question], tools=tools, store=False)
    requests = [item for item in first.output if item.type == "mcp_approval_request"]
    history = [question, *(item.model_dump(exclude_none=True) for item in first.output)]
    answers = [
        {"type": "mcp_approval_response", "approval_request_id": request.id, "approve": True} for request in requests
    ]
    second = await mcp.create(input=[*history, *answers], tools=tools, store=False)
    assert kinds(second) == ["mcp_call", "mcp_call", "message"]
    assert [item.status for item in second.output[:2]] == ["failed", "completed"]
    third = [*history, *answers, *(item.model_dump(exclude_none=True) for item in second.output), question]
    await mcp.create(input=third, tools=tools, store=False)
    seen = [(message["role"], message.get("content")) for message in mcp.server.asked[-1]["messages"]]
    assert [content for role, content in seen if role == "tool"][:2] == ["3", "<<x>> <|im_end|> \\<<y>>"]
    assert [role for role, _ in seen].count("tool") == 4
    assert mcp.counter.read_text() == "begin\nend\n"
    await refused(mcp, 409, "approval_already_answered", input=[*history, *answers], tools=tools, store=False)


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


async def test_large_arguments(mcp: McpGateway) -> None:
    arguments = json.dumps({"text": "x" * 1_000_000})
    mcp.server.script = [asks_for(("t__put", arguments)), says("stored")]
    response = await mcp.create(tools=[{"type": "mcp", "server_label": "t"}])
    request = response.output[-1]
    assert len(request.arguments) == len(arguments)
    answer = {"type": "mcp_approval_response", "approval_request_id": request.id, "approve": True}
    response = await mcp.create(input=[answer], previous_response_id=response.id)
    assert response.output[0].output == "stored 1000000"


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


async def test_a_deferred_response(mcp: McpGateway) -> None:
    mcp.server.script = [asks_for(("t__add", '{"a": 1, "b": 2}')), says("3")]
    async with mcp.http.post("/v1/sessions", json={"id": "s"}) as answer:
        assert answer.status < 300
    response = await mcp.create(extra_body={"semantic": {"session": "s", "output": "end", "defer": True}})
    assert response.output[-1].content[0].text == "<<end>>"
    async with mcp.http.get("/v1/sessions/s/variables/end?wait=true") as answer:
        assert (await answer.json())["value"] == "3"


async def test_a_conversation(mcp: McpGateway) -> None:
    mcp.server.script = [asks_for(("t__count", "{}")), says("counted")]
    conversation = await mcp.client.conversations.create()
    tools = [{"type": "mcp", "server_label": "t"}]
    first = await mcp.create(tools=tools, conversation=conversation.id)
    assert kinds(first) == ["mcp_list_tools", "mcp_approval_request"]
    answer = {"type": "mcp_approval_response", "approval_request_id": first.output[1].id, "approve": True}
    second = await mcp.create(tools=tools, conversation=conversation.id, input=[answer])
    assert kinds(second) == ["mcp_call", "message"]
    assert mcp.server.asked[1]["messages"][-1]["content"] == "counted"
    third = await mcp.create(tools=tools, conversation=conversation.id, input="more")
    assert kinds(third) == ["message"]
    assert [message["role"] for message in mcp.server.asked[2]["messages"]] == [
        *("user", "assistant", "tool", "assistant", "user")
    ]
    await refused(mcp, 400, "approval_already_answered", tools=tools, conversation=conversation.id, input=[answer])


async def test_an_approval_without_an_answer_is_none(mcp: McpGateway) -> None:
    mcp.server.script = [asks_for(("t__count", "{}"))]
    tools = [{"type": "mcp", "server_label": "t"}]
    first = await mcp.create(tools=tools)
    await mcp.create(tools=tools, previous_response_id=first.id, input="Yes, approved!")
    assert mcp.server.asked[1]["messages"][-2]["content"] == "error: the user did not approve this call"
    assert not mcp.counter.exists()
    answer = {"type": "mcp_approval_response", "approval_request_id": first.output[1].id, "approve": True}
    await refused(mcp, 400, "unknown_tool", tools=[], previous_response_id=first.id, input=[answer])
    narrow = [{**tools[0], "allowed_tools": ["add"]}]
    await refused(mcp, 400, "unknown_tool", tools=narrow, previous_response_id=first.id, input=[answer])
    await mcp.create(tools=tools, previous_response_id=first.id, input=[answer])
    assert mcp.counter.read_text() == "begin\nend\n", "a refused request does not use an approval"


async def test_an_approval_of_another_key(tmp_path: Path) -> None:
    async with mcp_gateway(tmp_path, api_key=["a", "b"]) as mcp:
        mcp.server.script = [asks_for(("t__count", "{}"))]
        tools = [{"type": "mcp", "server_label": "t"}]
        first = await mcp.client.with_options(api_key="a").responses.create(model="fake", input="x", tools=tools)
        answer = {"type": "mcp_approval_response", "approval_request_id": first.output[1].id, "approve": True}
        other = mcp.client.with_options(api_key="b")
        for continued in ({"previous_response_id": first.id}, {}):
            with pytest.raises(APIStatusError) as caught:
                await other.responses.create(model="fake", input=[answer], tools=tools, **continued)
            assert caught.value.status_code == 400
        reference = {"type": "item_reference", "id": first.output[1].id}
        with pytest.raises(APIStatusError) as caught:
            await other.responses.create(model="fake", input=[reference, answer], tools=tools)
        assert caught.value.status_code == 404
        assert not mcp.counter.exists()


async def test_two_requests_with_one_approval(mcp: McpGateway) -> None:
    mcp.server.script = [asks_for(("t__count", "{}"))]
    tools = [{"type": "mcp", "server_label": "t"}]
    first = await mcp.create(tools=tools)
    answer = {"type": "mcp_approval_response", "approval_request_id": first.output[1].id, "approve": True}
    again = {"tools": tools, "input": [answer], "previous_response_id": first.id}
    results = await asyncio.gather(*(mcp.create(**again) for _ in range(5)), return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["ConflictError"] * 4 + ["Response"]
    assert mcp.counter.read_text() == "begin\nend\n"


async def test_a_model_that_never_stops(mcp: McpGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp_setup, "MAX_TURNS", 4)
    mcp.server.always = asks_for(("t__add", '{"a": 1, "b": 2}'))
    response = await mcp.create()
    assert kinds(response)[:4] == ["mcp_list_tools", "mcp_call", "mcp_call", "mcp_call"]
    assert "tools" not in mcp.server.asked[3]
    assert (len(mcp.server.asked), response.status) == (4, "completed")


async def test_a_failure_ends_the_stream(mcp: McpGateway) -> None:
    mcp.server.script = [asks_for(("t__add", '{"a": 1, "b": 2}')), refuses(400, "too hot")]
    events = [event async for event in await mcp.create(stream=True)]
    assert events[-1].type == "response.failed"
    assert "too hot" in events[-1].response.error.message
    assert kinds(events[-1].response) == ["mcp_list_tools", "mcp_call"]
