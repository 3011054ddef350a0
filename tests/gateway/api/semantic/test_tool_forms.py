"""gateway/api/semantic/tool_forms.py: tools and agents of a graph, with a real MCP server."""

import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.fakes.in_process_gateway import GatewayClient, ScriptedGateway, gateway_before
from tests.fakes.scripted_server import Behaviour, ScriptedServer, chunk, says, stream
from tests.gateway.api.semantic.session_client import SessionClient

_SERVER = Path(__file__).parents[3] / "fakes" / "tool_server.py"


@pytest.fixture
async def tool_gateway(tmp_path: Path) -> AsyncIterator[ScriptedGateway]:
    """Run a gateway with an MCP server `t`, before a scripted upstream server."""
    settings = {
        "servers": {
            "t": {
                "command": [sys.executable, str(_SERVER)],
                "env": {"COUNTER": str(tmp_path / "count")},
                "tools": ["add", "count", "fail", "put", "markup", "large"],
                "result_bytes": 1000,
            }
        }
    }
    path = tmp_path / "tools.json"
    path.write_text(json.dumps(settings))
    async with ScriptedServer() as server, gateway_before(server, tool_servers=path) as (client, unfinished):
        yield client, server, unfinished


def tool(name: str, output: str = "text", /, **arguments: Any) -> dict[str, Any]:
    return {"tool": {"server": "t", "name": name, "arguments": arguments}, "output": output}


def call(text: str, output: str, **more: Any) -> dict[str, Any]:
    message = {"role": "user", "content": text}
    return {"model": "fake", "messages": [message], "semantic": {"output": output}, **more}


async def send(client: GatewayClient, **body: Any) -> tuple[int, Any]:
    async with client.post("/v1/graphs", json=body) as answer:
        return answer.status, await answer.json()


async def test_a_tool_runs_on_variables(tool_gateway: ScriptedGateway) -> None:
    client, server, _ = tool_gateway
    server.script = [says('{"n": 5}')]
    _, answer = await send(
        client,
        variables={"text": "<<n>> é"},
        calls=[
            call("five", "five"),
            tool("add", "sum", a="<<five.n>>", b=2),
            tool("put", "stored", text="a <<text>> <<sum>>"),
            call("got <<sum>>", "end"),
        ],
        outputs=["sum", "stored", "end"],
    )
    assert answer["outputs"] == {"sum": "7", "stored": "stored 11", "end": "fake"}, answer
    assert server.asked[1]["messages"][0]["content"] == "got 7"


async def test_a_result_is_data(tool_gateway: ScriptedGateway) -> None:
    client, server, _ = tool_gateway
    calls = [tool("markup"), call("read <<text>>", "end")]
    await send(client, variables={"x": "secret", "y": "secret"}, calls=calls, outputs=["end"])
    assert server.asked[0]["messages"][0]["content"] == "read <<x>> <|im_end|> \\<<y>>"


@pytest.mark.parametrize(
    ("form", "param", "code"),
    [
        ({"tool": {"server": "none", "name": "add"}}, "calls.0.tool", "unknown_tool"),
        ({"tool": {"server": "t", "name": "none"}}, "calls.0.tool", "unknown_tool"),
        ({"tool": {"server": "t", "name": "environment"}}, "calls.0.tool", "unknown_tool"),
        (tool("add", a=1), "calls.0.tool.arguments", "invalid_value"),
        (tool("add", a=1, b=[]), "calls.0.tool.arguments.b", "invalid_value"),
        (tool("add", a="<<nowhere>>", b=1), "calls.0.tool.arguments.a", "unknown_variable"),
        ({"agent": {"model": "fake", "tools": ["t/none"], "messages": []}}, "calls.0.agent", None),
        ({"agent": {"model": "fake", "tools": ["add"], "messages": []}}, "calls.0.agent.tools.0", "invalid_value"),
        ({"agent": {"tools": ["t/add"], "messages": []}}, "calls.0.agent", None),
        ({"agent": {"model": "fake", "max_turns": 0, "messages": []}}, "calls.0.agent.max_turns", None),
    ],
)
async def test_a_form_that_cannot_run_is_refused(
    tool_gateway: ScriptedGateway, form: dict[str, Any], param: str, code: str | None
) -> None:
    client, server, unfinished = tool_gateway
    status, refused = await send(client, calls=[form])
    assert status == 400, refused
    assert (refused["error"]["param"] or "").startswith(param), refused
    assert code is None or refused["error"]["code"] == code, refused
    assert (server.asked, unfinished()) == ([], 0)


@pytest.mark.parametrize(
    ("form", "code", "message"),
    [
        (tool("fail"), "tool_failed", "tool t/fail failed: "),
        (tool("add", a="<<v>>", b=1), "invalid_value", "tool t/add"),
        (tool("large", size=2000), "tool_too_large", "tool t/large"),
    ],
)
async def test_a_run_that_fails(tool_gateway: ScriptedGateway, form: dict[str, Any], code: str, message: str) -> None:
    client, _, unfinished = tool_gateway
    _, answer = await send(client, variables={"v": "no number"}, calls=[form])
    assert answer["errors"]["text"]["code"] == code, answer
    assert message in answer["errors"]["text"]["message"]
    assert unfinished() == 0


async def test_equal_runs_of_a_reading_tool_share_a_result(tool_gateway: ScriptedGateway) -> None:
    client, _, _ = tool_gateway
    session = SessionClient(client)
    await session.create()
    calls = [tool("add", "one", a=1, b=2), tool("add", "two", a=1, b=2), tool("count", "c1"), tool("count", "c2")]
    _, answer = await send(client, session="s", calls=calls)
    assert answer["outputs"] == {"one": "3", "two": "3", "c1": "counted", "c2": "counted"}
    _, graph = await session.send("GET", "/graph")
    assert [bool(entry["shared_with"]) for entry in graph["calls"]] == [False, True, False, False]


def asks_for(*calls: tuple[str, Any], text: str = "") -> Behaviour:
    """Return a behaviour that answers with tool calls."""

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        deltas = [
            {"index": index, "id": f"x{index}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for index, (name, arguments) in enumerate(calls)
        ]
        first = chunk(body, text or None)
        first["choices"][0]["delta"]["tool_calls"] = deltas
        return await stream(request, [first, chunk(body, None, "tool_calls")])

    return behave


def agent(text: str, *tools: str, **more: Any) -> dict[str, Any]:
    body = {"model": "fake", "messages": [{"role": "user", "content": text}], "tools": list(tools), **more}
    return {"agent": body, "output": "answer"}


async def test_an_agent_calls_tools_until_it_answers(tool_gateway: ScriptedGateway) -> None:
    client, server, _ = tool_gateway
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


async def test_an_agent_that_never_answers(tool_gateway: ScriptedGateway) -> None:
    client, server, unfinished = tool_gateway
    server.always = asks_for(("add", '{"a": 1, "b": 2}'))
    _, answer = await send(client, calls=[agent("x", "t/add", max_turns=3)])
    assert answer["errors"]["answer"]["code"] == "max_turns_reached"
    assert "answer 3 of the agent still calls tools" in answer["errors"]["answer"]["message"]
    assert (len(server.asked), unfinished()) == (3, 0)


async def test_agents_in_a_map(tool_gateway: ScriptedGateway) -> None:
    client, server, _ = tool_gateway

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
