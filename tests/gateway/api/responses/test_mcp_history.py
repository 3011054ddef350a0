"""gateway/api/responses/mcp_history.py: approvals of calls, with a real MCP server."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import APIStatusError

from compat.openai.responses import items_of, to_messages
from gateway.api.responses.mcp_history import McpHistory
from gateway.errors import RequestError
from tests.fakes.scripted_server import says
from tests.fakes.tool_gateway import asks_for
from tests.gateway.api.responses.mcp_gateway import OPEN, McpGateway, kinds, mcp_gateway, refused


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


async def test_large_arguments(mcp: McpGateway) -> None:
    arguments = json.dumps({"text": "x" * 1_000_000})
    mcp.server.script = [asks_for(("t__put", arguments)), says("stored")]
    response = await mcp.create(tools=[{"type": "mcp", "server_label": "t"}])
    request = response.output[-1]
    assert len(request.arguments) == len(arguments)
    answer = {"type": "mcp_approval_response", "approval_request_id": request.id, "approve": True}
    response = await mcp.create(input=[answer], previous_response_id=response.id)
    assert response.output[0].output == "stored 1000000"


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


IDS = st.sampled_from(["a", "b", "c", "d"])
PARTS = st.lists(
    st.tuples(st.just("ask"), st.lists(IDS, min_size=1, max_size=3, unique=True))
    | st.tuples(st.sampled_from(["approve", "deny", "result"]), IDS)
    | st.tuples(st.just("say"), st.text(max_size=3)),
    max_size=12,
)


@given(PARTS)
def test_each_call_that_needs_an_approval_has_one_result_behind_it(parts: list[tuple[str, Any]]) -> None:
    history, items = McpHistory(), list[dict[str, Any]]()
    asked: set[str] = set()
    for kind, value in parts:
        match kind:
            case "ask":
                new = [id for id in value if id not in asked]
                asked.update(new)
                call = {"type": "mcp_approval_request", "server_label": "t", "name": "f", "arguments": "{}"}
                items += [{**call, "id": id} for id in new]
            case "approve" | "deny" if value in asked:
                answer = {"type": "mcp_approval_response", "approval_request_id": value}
                items.append({**answer, "approve": kind == "approve"})
            case "result" if value in asked:
                call = {"type": "mcp_call", "id": f"r{value}", "server_label": "t", "name": "f", "arguments": "{}"}
                items.append({**call, "approval_request_id": value, "output": "done"})
            case "say":
                items.append({"role": "user", "content": value})
    found = items_of(items)
    try:
        history.add_request(found)
    except RequestError:  # two answers to one request
        return
    messages, paths = history.place_results(*to_messages(found, "input"))
    assert len(messages) == len(paths)
    waiting: list[str] = []
    for message in messages:
        if message.role == "tool":
            assert message.tool_call_id == waiting.pop(0) if waiting else False
            is_pending = message.tool_call_id in {call.id for call in history.pending}
            assert (message.content is None) == is_pending
        else:
            assert not waiting, "results are behind their calls"
            waiting = [call.id for call in message.tool_calls or ()]
    assert not waiting
    said = [message.content for message in messages if message.role == "user"]
    assert said == [value for kind, value in parts if kind == "say"]
