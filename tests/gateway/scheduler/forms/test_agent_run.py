"""gateway/scheduler/forms/agent_run.py: a scripted model and tools of a real MCP server take turns."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.fakes.in_process_gateway import ScriptedGateway
from tests.fakes.scripted_server import says
from tests.fakes.tool_gateway import agent, asks_for, call, send, tool_gateway
from tests.gateway.api.semantic.session_client import SessionClient


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[ScriptedGateway]:
    """Yield a gateway with a tool server `t`."""
    async with tool_gateway(tmp_path) as started:
        yield started


async def test_an_agent_calls_tools_until_it_answers(gateway: ScriptedGateway) -> None:
    client, server, _ = gateway
    server.script = [
        asks_for(("add", '{"a": 1, "b": 2}'), ("put", '{"text": "<<question>>"}'), text="Let me <<question>>."),
        asks_for(("fail", "{}"), ("add", "no json"), ("add", '{"a": 1}')),
        says("It is 3 <<question>>."),
    ]
    session = SessionClient(client)
    await session.create()
    _, answer = await send(
        client,
        session="s",
        variables={"question": "1+2?"},
        calls=[agent("Question: <<question>>", "t/*"), call("<<answer>>", "end")],
        outputs=["answer", "end"],
    )
    assert answer["outputs"] == {"answer": "It is 3 <<question>>.", "end": "fake"}, answer
    first, second, third, last = server.asked
    names = [entry["function"]["name"] for entry in first["tools"]]
    assert set(names) == {"add", "put", "count", "large", "fail", "markup"}
    assert first["messages"][0]["content"] == "Question: 1+2?"
    assistant, *results = second["messages"][1:]
    assert assistant["content"] == "Let me <<question>>."
    assert [entry["function"]["arguments"] for entry in assistant["tool_calls"]] == [
        '{"a": 1, "b": 2}',
        '{"text": "<<question>>"}',
    ]
    assert [result["content"] for result in results] == ["3", "stored 12"], "an answer holds no references"
    errors = [result["content"] for result in third["messages"][-3:]]
    assert errors[0].startswith("error: tool t/fail failed: ")
    assert all(error.startswith("error: tool t/add: ") for error in errors[1:])
    assert last["messages"][0]["content"] == "It is 3 <<question>>."
    _, graph = await session.send("GET", "/graph")
    outputs = [entry["output"] for entry in graph["calls"] if entry["parent"] == graph["calls"][0]["id"]]
    assert outputs == [
        *("answer@1", "answer@1.0", "answer@1.1"),
        *("answer@2", "answer@2.0", "answer@2.1", "answer@2.2"),
        "answer@3",
    ]


async def test_an_agent_has_defaults_for_skipped_variables(gateway: ScriptedGateway) -> None:
    client, server, _ = gateway
    server.script = [asks_for(("add", '{"a": 1, "b": 2}')), says("It is 3.")]
    body = agent("Draft: <<draft>>", "t/add")
    body["agent"]["semantic"] = {"defaults": {"draft": "<<none>>"}}
    branch = {"if": {"value": "x", "equals": "y"}, "then": [call("x", "draft")]}
    _, answer = await send(client, calls=[branch, body], outputs=["answer"])
    assert answer["outputs"] == {"answer": "It is 3."}, answer
    first, second = server.asked
    assert [asked["messages"][0]["content"] for asked in (first, second)] == ["Draft: <<none>>"] * 2


async def test_an_agent_that_never_answers(gateway: ScriptedGateway) -> None:
    client, server, unfinished = gateway
    server.always = asks_for(("add", '{"a": 1, "b": 2}'))
    _, answer = await send(client, calls=[agent("x", "t/add", max_turns=3)])
    assert answer["errors"]["answer"]["code"] == "max_turns_reached"
    assert "answer 3 of the agent still calls tools" in answer["errors"]["answer"]["message"]
    assert (len(server.asked), unfinished()) == (3, 0)


async def test_agents_in_a_map(gateway: ScriptedGateway) -> None:
    client, server, _ = gateway

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        *_, last = body["messages"]
        if last["role"] == "user":
            number = last["content"].split()[1]
            return await asks_for(("add", json.dumps({"a": int(number), "b": 10})))(request, body)
        return await says(f"sum {last['content']}")(request, body)

    server.always = behave
    form = {"map": {"over": [1, 2, 3], "call": {"agent": agent("add <<item>>", "t/add")["agent"]}}, "output": "sums"}
    _, answer = await send(client, calls=[form])
    assert answer["outputs"] == {"sums": '["sum 11","sum 12","sum 13"]'}, answer


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"calls": 4}, "5 calls of models and tools; the maximum is 4"),
        ({"tokens": 20}, "of 20 tokens"),
        ({"seconds": 0.5}, "its 0.5 s are over"),
    ],
)
async def test_the_limits_of_an_agent(gateway: ScriptedGateway, limits: dict[str, Any], message: str) -> None:
    client, server, unfinished = gateway
    server.always = asks_for(("count", '{"seconds": 0.2}'))
    entry = agent("x", "t/count", max_turns=50, limits=limits)
    _, answer = await send(client, calls=[entry, call("other", "other")])
    assert answer["errors"]["answer"]["code"] == "budget_exceeded", answer
    assert "the budget of agent 'answer'" in answer["errors"]["answer"]["message"]
    assert message in answer["errors"]["answer"]["message"]
    assert answer["outputs"]["other"] is not None, "the limits are the agent's own"
    assert unfinished() == 0
