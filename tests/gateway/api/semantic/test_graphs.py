"""gateway/api/semantic/graphs.py: several calls in one request, all of them or none."""

import json
from typing import Any

import pytest

from tests.fakes.in_process_gateway import GatewayClient, ScriptedGateway
from tests.fakes.scripted_server import refuses, says
from tests.gateway.api.semantic.session_client import SessionClient


def call(text: str, output: str | None = None, **more: Any) -> dict[str, Any]:
    semantic = {} if output is None else {"semantic": {"output": output}}
    return {"model": "fake", "messages": [{"role": "user", "content": text}], **semantic, **more}


async def send(client: GatewayClient, **body: Any) -> tuple[int, Any]:
    async with client.post("/v1/graphs", json=body) as answer:
        return answer.status, await answer.json()


async def test_outputs_have_the_values_of_their_calls(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.script = [says("red"), says("a red house")]
    status, answer = await send(
        client,
        variables={"topic": "colours", "declared": {"template": "On <<topic>>."}},
        calls=[call("<<declared>>", "colour"), call("Paint it <<colour>>.", "house")],
        outputs=["house", "declared"],
    )
    assert status == 200
    assert answer["outputs"] == {"house": "a red house", "declared": "On colours."}
    assert "errors" not in answer
    assert [asked["messages"][0]["content"] for asked in server.asked] == ["On colours.", "Paint it red."]


async def test_calls_that_no_output_needs_do_not_run(scripted_gateway: ScriptedGateway) -> None:
    client, server, unfinished = scripted_gateway
    _, answer = await send(client, calls=[call("a", "a"), call("b", "b")], outputs=["a"])
    assert list(answer["outputs"]) == ["a"]
    assert [asked["messages"][0]["content"] for asked in server.asked if asked["messages"][0]["content"] == "a"] == [
        "a"
    ]
    assert unfinished() == 0


async def test_a_failed_output_has_an_error_beside_the_others(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.script = [refuses(400, "not so")]
    status, answer = await send(client, calls=[call("a", "a"), call("<<a>>", "b")], outputs=["b"])
    assert status == 200
    assert answer["outputs"] == {"b": None}
    assert answer["errors"]["b"]["code"] == "upstream_failed"


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"calls": [call("x", "a"), call("y", "a")]}, "calls.1", "variable_already_set"),
        ({"calls": [call("<<nowhere>>", "a")]}, "calls.0.messages.0.content", "unknown_variable"),
        ({"calls": [call("<<b>>", "a"), call("<<a>>", "b")]}, "calls.0", "cycle"),
        ({"calls": [{"model": "fake"}]}, "calls.0.messages", "missing_required_parameter"),
        ({"calls": [call("x", "a", temperature=9)]}, "calls.0.temperature", "invalid_value"),
        ({"calls": [3]}, "calls.0", "invalid_value"),
        ({"calls": [call("x", "a", stream=True)]}, "calls.0.stream", None),
        ({"calls": [call("x", "a")], "outputs": ["b"]}, "outputs.0", None),
        ({"variables": {"v": {"template": "<<nowhere>>"}}}, "variables.v", "unknown_variable"),
    ],
)
async def test_an_error_names_its_place_and_nothing_runs(
    scripted_gateway: ScriptedGateway, body: dict[str, Any], param: str, code: str | None
) -> None:
    client, server, unfinished = scripted_gateway
    session = SessionClient(client)
    await session.create()
    status, refused = await send(client, session="s", **body)
    assert 400 <= status < 500
    assert (refused["error"]["param"] or "").startswith(param)
    assert code is None or refused["error"]["code"] == code
    assert (server.asked, unfinished()) == ([], 0)
    assert (await session.send("GET", "/variables"))[1]["data"] == [], "nothing was added"


async def test_an_object_that_is_no_definition_is_a_value(scripted_gateway: ScriptedGateway) -> None:
    for value in ({"value": "x", "template": "y"}, {"a": 1}):
        _, answer = await send(scripted_gateway[0], variables={"v": value}, outputs=["v"])
        assert json.loads(answer["outputs"]["v"]) == value


async def test_a_graph_of_a_session_is_described(scripted_gateway: ScriptedGateway) -> None:
    session = SessionClient(scripted_gateway[0])
    await session.create()
    await session.put("topic", value="bees")
    await session.ask("On <<topic>>", "a")
    await session.get("a", "?wait=true")
    status, graph = await session.send("GET", "/graph")
    (described,) = graph["calls"]
    assert status == 200
    assert (described["inputs"], described["output"], described["state"]) == (["topic"], "a", "done")
    id = described["id"]
    edges = [(edge["from"], edge["to"]) for edge in graph["edges"]]
    assert sorted(edges) == sorted([("topic", id), (id, "a")])
    assert {one["name"] for one in graph["variables"]} == {"topic", "a"}
    status, refused = await session.send("GET", "/graph?format=png")
    assert (status, refused["error"]["param"]) == (400, "format")


async def test_a_graph_without_values_and_only_what_changed(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.script = [says("one"), says("two"), says("three")]
    session = SessionClient(client)
    await session.create()
    await session.ask("First", "a")
    await session.get("a", "?wait=true")
    await session.put("lookup", value=None)
    _, whole = await session.send("GET", "/graph")
    assert [variable["value"] for variable in whole["variables"]] == ["one", None]
    _, short = await session.send("GET", "/graph?values=none")
    assert [variable["value"] for variable in short["variables"]] == [None, None]
    assert [variable["state"] for variable in short["variables"]] == ["ready", "declared"]
    last = short["last_event_id"]
    assert (await session.send("GET", f"/graph?after={last}"))[1] == {
        "last_event_id": last,
        "calls": [],
        "variables": [],
        "edges": [],
    }
    await session.ask("Second <<a>> <<lookup>>", "b")
    _, changed = await session.send("GET", f"/graph?after={last}")
    assert [call["output"] for call in changed["calls"]] == ["b"]
    assert {variable["name"] for variable in changed["variables"]} == {"a", "lookup", "b"}, "a call reads the first two"
    assert {(edge["from"], edge["to"]) for edge in changed["edges"]} >= {("a", changed["calls"][0]["id"])}
    _, before = await session.send("GET", "/graph")
    await session.put("lookup", value="x")
    await session.get("b", "?wait=true")
    _, changed = await session.send("GET", f"/graph?after={before['last_event_id']}")
    assert [(call["output"], call["state"], call["waits_for"]) for call in changed["calls"]] == [("b", "done", None)]
    assert changed["last_event_id"] > before["last_event_id"]


@pytest.mark.parametrize(("query", "param"), [("values=some", "values"), ("after=-1", "after"), ("after=x", "after")])
async def test_invalid_queries_of_the_graph_are_refused(
    scripted_gateway: ScriptedGateway, query: str, param: str
) -> None:
    session = SessionClient(scripted_gateway[0])
    await session.create()
    status, refused = await session.send("GET", f"/graph?{query}")
    assert (status, refused["error"]["param"]) == (400, param)
