"""gateway/api/responses/items.py: the items of a response, and their events."""

import json
from itertools import count
from typing import Any

import pytest

from compat.openai import TokenLogprob
from compat.openai.responses import FunctionToolCall, OutputMessage
from gateway.api.responses.items import Items, item_id, response_id_of
from gateway.prompts.tool_calls.parser import AnswerText, ToolCallArguments, ToolCallStart
from tests.fakes.in_process_gateway import ScriptedGateway
from tests.fakes.scripted_server import says
from tests.gateway.api.responses.test_routes import LOOK, ask, asked, calls, events_of


def test_text_around_a_call_is_two_messages_each_with_its_own_log_probabilities() -> None:
    items = Items(count(), "resp_x", {})
    first, second = (TokenLogprob(text, -1.0, [], []) for text in "ab")
    events = items.add(AnswerText("a"), [first])
    for found in (ToolCallStart(0, "look"), ToolCallArguments(0, "{"), ToolCallArguments(0, "}")):
        events += items.add(found)
    events += [*items.add(AnswerText("b"), [second]), *items.end("incomplete")]
    before, call, fallbacks_of = items.done
    assert isinstance(before, OutputMessage)
    assert isinstance(call, FunctionToolCall)
    assert isinstance(fallbacks_of, OutputMessage)
    assert (before.content[0].text, before.content[0].logprobs, before.status) == ("a", [first], "completed")
    assert (call.name, call.arguments, call.status) == ("look", "{}", "completed")
    assert (fallbacks_of.content[0].text, fallbacks_of.content[0].logprobs, fallbacks_of.status) == (
        "b",
        [second],
        "incomplete",
    )
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.output_index for event in events] == sorted(event.output_index for event in events)
    assert len({item.id for item in items.done}) == 3


NAMESPACE = {"type": "namespace", "name": "mcp__files", "description": "Files.", "tools": [LOOK]}
LARK = {"type": "grammar", "syntax": "lark", "definition": 'start: "a" | "b"'}
PATCH = {"type": "custom", "name": "patch", "format": LARK}
SEARCH = {"type": "tool_search", "execution": "client"}
SENT: list[tuple[list[Any], dict[str, str], dict[str, Any], dict[str, Any]]] = [
    (
        [NAMESPACE],
        {"name": "mcp__files__look", "arguments": '{"at": "it"}'},
        {"type": "function_call", "name": "look", "namespace": "mcp__files", "arguments": '{"at": "it"}'},
        {"type": "function_call_output", "output": "a cat"},
    ),
    (
        [PATCH],
        {"name": "patch", "arguments": '{"input": "a \\"b\\"\\n"}'},
        {"type": "custom_tool_call", "name": "patch", "input": 'a "b"\n'},
        {"type": "custom_tool_call_output", "output": [{"type": "input_text", "text": "done"}]},
    ),
    (
        [{**NAMESPACE, "tools": [PATCH]}],
        {"name": "mcp__files__patch", "arguments": '{"patch": "a"}'},
        {"type": "custom_tool_call", "name": "patch", "namespace": "mcp__files", "input": '{"patch": "a"}'},
        {"type": "custom_tool_call_output", "output": "done"},
    ),
    (
        [SEARCH],
        {"name": "tool_search", "arguments": '{"query": "cats"}'},
        {"type": "tool_search_call", "execution": "client", "arguments": {"query": "cats"}},
        {"type": "tool_search_output", "execution": "client", "tools": [LOOK]},
    ),
]


@pytest.mark.parametrize(("tools", "called", "expected", "output"), SENT)
async def test_a_call_comes_back_as_the_client_knows_the_tool(
    scripted_gateway: ScriptedGateway,
    tools: list[Any],
    called: dict[str, str],
    expected: dict[str, Any],
    output: dict[str, Any],
) -> None:
    client, server, _ = scripted_gateway
    tools = [*tools, {"type": "web_search", "external_web_access": True}]
    server.script = [calls(called), calls(called)]
    whole = await ask(client, tools=tools, client_metadata={"turn": "1"})
    events = await events_of(client, tools=tools)
    assert [tool["type"] for tool in whole["tools"]] == [tools[0]["type"]]
    for item in (whole["output"][0], events[-1].response.output[0].to_dict(), events[-2].item.to_dict()):
        assert {name: item[name] for name in expected} == expected
        assert item["status"] == "completed"
    added = events[2].item.to_dict()
    assert added["type"] == expected["type"]
    assert added.get("input", "") == ""
    deltas = [event.delta for event in events if event.type == "response.custom_tool_call_input.delta"]
    done = [event.input for event in events if event.type == "response.custom_tool_call_input.done"]
    if "input" in expected:
        assert "".join(deltas) == expected["input"] == done[0]
    else:
        assert deltas == done == []
    # the next turn, by hand and by id
    (item,) = whole["output"]
    answered = {**output, "call_id": item["call_id"]}
    user = {"role": "user", "content": "Hello"}
    await ask(client, tools=tools, input=[user, item, answered])
    by_hand = server.asked[-1]["messages"]
    await ask(client, tools=tools, input=[answered], previous_response_id=whole["id"])
    assert server.asked[-1]["messages"] == by_hand
    assert [message["role"] for message in by_hand] == ["user", "assistant", "tool"]
    (sent,) = by_hand[1]["tool_calls"]
    assert sent["function"]["name"] == called["name"]
    if "patch" not in called["arguments"]:
        assert json.loads(sent["function"]["arguments"]) == json.loads(called["arguments"])
    assert by_hand[2]["tool_call_id"] == sent["id"] == item["call_id"]
    offered = [tool["function"]["name"] for tool in server.asked[-1]["tools"]]
    assert offered == ([called["name"], "look"] if tools[0] is SEARCH else [called["name"]])


async def test_a_call_that_is_cut_off_ends_its_item(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.script = [calls({"name": "patch", "arguments": '{"input": "a\\'}, finish="length")]
    whole = await ask(client, tools=[PATCH])
    assert [(item["input"], item["status"]) for item in whole["output"]] == [("a", "incomplete")]
    await ask(client, input="Go on.", previous_response_id=whole["id"], tools=[PATCH])
    assert [role for role, _ in asked(server)] == ["user", "user"], "it cannot be run"


async def test_reasoning_comes_back_encoded(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    from tests.gateway.api.test_reasoning import thinks  # it imports a module of this folder

    server.script = [thinks("I look.", calls=True), thinks("I look.", calls=True)]
    plain = await ask(client, tools=[{**LOOK, "name": "look"}])
    assert "encrypted_content" not in plain["output"][0]
    told = await ask(client, include=["reasoning.encrypted_content"], tools=[LOOK])
    reasoning, call = told["output"]
    assert reasoning["encrypted_content"]
    del reasoning["content"]
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "x"}
    for encrypted, expected in ((reasoning["encrypted_content"], "I look."), ("gAAAAA", None)):
        items = [{"role": "user", "content": "x"}, {**reasoning, "encrypted_content": encrypted}, call, output]
        await ask(client, input=items, tools=[LOOK])
        assert server.asked[-1]["messages"][1].get("reasoning_content") == expected


def test_ids_of_items_name_their_response() -> None:
    assert response_id_of(item_id("fc", "resp_0123", 7)) == "resp_0123"
    assert response_id_of("msg_0123_4") == "resp_0123"
    for other in ("", "msg", "msg_", "msg_1", "_", "__"):
        assert response_id_of(other) is None


async def test_tools_of_earlier_items_stay(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    called = {"name": "mcp__files__look", "arguments": '{"at": "it"}'}
    server.script = [says("one"), calls(called)]
    added = {"type": "additional_tools", "role": "developer", "tools": [NAMESPACE]}
    first = await ask(client, input=[added, {"role": "user", "content": "x"}])
    second = await ask(client, input="y", previous_response_id=first["id"], tools=[PATCH])
    assert [tool["function"]["name"] for tool in server.asked[-1]["tools"]] == ["patch", "mcp__files__look"]
    assert (second["output"][0]["name"], second["output"][0]["namespace"]) == ("look", "mcp__files")
    many = {**NAMESPACE, "tools": [{**LOOK, "name": f"f{number}"} for number in range(512)]}
    refused = await ask(client, 400, input="z", previous_response_id=second["id"], tools=[many])
    assert (refused["error"]["param"], "at most 512" in refused["error"]["message"]) == ("tools", True)


@pytest.mark.parametrize(
    ("format", "input", "problem"),
    [
        (LARK, "a", None),
        (LARK, "c", "in a call of patch: the input does not match its grammar"),
        (LARK, "a" * 50_000, "in a call of patch: the input does not match its grammar"),
        ({"type": "grammar", "syntax": "regex", "definition": "[ab]+"}, "abab", None),
        ({"type": "grammar", "syntax": "regex", "definition": "[ab]+"}, "abc", "in a call of patch: input: pattern"),
        ({"type": "text"}, "anything", None),
    ],
)
async def test_an_input_that_the_upstream_server_does_not_constrain_is_checked(
    scripted_gateway: ScriptedGateway, format: Any, input: str, problem: str | None
) -> None:
    client, server, _ = scripted_gateway
    called = {"name": "patch", "arguments": json.dumps({"input": input})}
    server.script = [calls(called), calls(called)]
    async with client.post(
        "/v1/responses", json={"model": "fake", "input": "x", "tools": [{**PATCH, "format": format}]}
    ) as answer:
        told = await answer.json()
    assert told["output"][0]["input"] == input
    assert (told.get("schema_violation") or "").startswith(problem or "")
    assert ("schema_violation" in told) == (problem is not None)
