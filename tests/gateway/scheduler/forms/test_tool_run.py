"""gateway/scheduler/forms/tool_run.py: tools of a real MCP server as calls of a graph."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.in_process_gateway import ScriptedGateway
from tests.fakes.scripted_server import says
from tests.fakes.tool_gateway import agent, asks_for, call, send, tool, tool_gateway
from tests.gateway.api.semantic.session_client import SessionClient


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[ScriptedGateway]:
    """Yield a gateway with a tool server `t`."""
    async with tool_gateway(tmp_path) as started:
        yield started


async def test_a_tool_runs_on_variables(gateway: ScriptedGateway) -> None:
    client, server, _ = gateway
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


async def test_a_result_is_data(gateway: ScriptedGateway) -> None:
    client, server, _ = gateway
    calls = [tool("markup"), call("read <<text>>", "end")]
    await send(client, variables={"x": "secret", "y": "secret"}, calls=calls, outputs=["end"])
    assert server.asked[0]["messages"][0]["content"] == "read <<x>> <|im_end|> \\<<y>>"


@pytest.mark.parametrize(
    ("form", "code", "message"),
    [
        (tool("fail"), "tool_failed", "tool t/fail failed: "),
        (tool("add", a="<<v>>", b=1), "invalid_value", "tool t/add"),
        (tool("large", size=2000), "tool_too_large", "tool t/large"),
    ],
)
async def test_a_run_that_fails(gateway: ScriptedGateway, form: dict[str, Any], code: str, message: str) -> None:
    client, _, unfinished = gateway
    _, answer = await send(client, variables={"v": "no number"}, calls=[form])
    assert answer["errors"]["text"]["code"] == code, answer
    assert message in answer["errors"]["text"]["message"]
    assert unfinished() == 0


async def test_equal_runs_of_a_reading_tool_share_a_result(gateway: ScriptedGateway) -> None:
    client, _, _ = gateway
    session = SessionClient(client)
    await session.create()
    calls = [tool("add", "one", a=1, b=2), tool("add", "two", a=1, b=2), tool("count", "c1"), tool("count", "c2")]
    _, answer = await send(client, session="s", calls=calls)
    assert answer["outputs"] == {"one": "3", "two": "3", "c1": "counted", "c2": "counted"}
    _, graph = await session.send("GET", "/graph")
    assert [bool(entry["shared_with"]) for entry in graph["calls"]] == [False, True, False, False]


async def test_references_stand_for_other_values_than_strings(gateway: ScriptedGateway) -> None:
    client, _, _ = gateway
    calls = [tool("add", "sum", a="<<n>>", b="<<list.1>>"), tool("put", "stored", text="\\<<n>> <<n>>")]
    _, answer = await send(client, variables={"n": 5, "list": [1, 2]}, calls=calls)
    assert answer["outputs"] == {"sum": "7", "stored": "stored 7"}, answer


async def test_many_references_in_arguments_are_refused_soon(gateway: ScriptedGateway) -> None:
    client, _, unfinished = gateway
    values = {f"x{number}": "<<n>>" for number in range(1000)}
    _, answer = await send(client, variables={"n": 5}, calls=[tool("add", "sum", a="<<n>>", b="<<n>>", **values)])
    assert "sum" in answer["outputs"]
    assert unfinished() == 0


async def test_arguments_of_a_model_that_are_nested_deeply(gateway: ScriptedGateway) -> None:
    client, server, _ = gateway
    server.script = [asks_for(("put", '{"text": ' + "[" * 900 + "]" * 900 + "}")), says("done")]
    _, answer = await send(client, calls=[agent("x", "t/put")])
    assert answer["outputs"]["answer"] is not None, answer
