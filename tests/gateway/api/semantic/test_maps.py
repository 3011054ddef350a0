"""gateway/api/semantic/maps.py: maps of a graph, and `semantic.each`, from the request to their values."""

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web

from tests.fakes.in_process_gateway import ScriptedGateway, gateway_before
from tests.fakes.scripted_server import ScriptedServer, refuses, says
from tests.gateway.api.semantic.graph_requests import IS_X, answers, call, mapped, send, text_of, until
from tests.gateway.api.semantic.session_client import SessionClient


async def test_a_map_calls_the_model_for_each_element(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.always = answers(lambda text: f"[{text}]")
    status, answer = await send(
        client,
        session=(await SessionClient(client).create())["id"],
        variables={"plan": {"steps": [{"title": "dig", "n": 1}, {"title": "plant <<x>>", "n": 2}]}, "tone": "Short"},
        calls=[
            mapped("<<plan.steps>>", "<<tone>>: <<step.title>> (<<index>>) <<step>>", **{"as": "step"}),
            call("First <<results.0>>, all <<results>>", "end"),
        ],
        outputs=["results", "end"],
    )
    assert status == 200, answer
    results = json.loads(answer["outputs"]["results"])
    assert results == [
        '[Short: dig (0) {"title":"dig","n":1}]',
        '[Short: plant <<x>> (1) {"title":"plant <<x>>","n":2}]',
    ]
    assert answer["outputs"]["end"] == f"[First {results[0]}, all {answer['outputs']['results']}]"
    status, element = await SessionClient(client).get("results.1")
    assert (status, element["value"], element["state"]) == (200, results[1], "ready")


async def test_a_map_starts_before_its_list_has_ended(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    first_step = asyncio.Event()

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if text_of(body) != "plan":
            first_step.set()
            return await says(f"did {text_of(body)}")(request, body)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)

        async def write(text: str) -> None:
            event = {"model": "fake", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")

        await write('{"steps": ["dig", "pl')
        await asyncio.wait_for(first_step.wait(), 30)  # the list goes on once its first element has a call
        await write('ant"]}')
        end = {"model": "fake", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        await response.write(b"data: " + json.dumps(end).encode() + b"\n\ndata: [DONE]\n\n")
        return response

    server.always = behave
    _, answer = await send(client, calls=[call("plan", "plan"), mapped("<<plan.steps>>", "<<item>>")])
    assert answer["outputs"] == {"results": '["did dig","did plant"]'}, answer
    plan = next(asked for asked in server.asked if text_of(asked) == "plan")
    assert isinstance(plan["seed"], int), "the list must be the same if it is generated again"


@pytest.mark.parametrize(
    ("on_error", "expected"),
    [("skip", '["1","3"]'), ("null", '["1",null,"3"]'), ("fail", None)],
)
async def test_a_failed_element(scripted_gateway: ScriptedGateway, on_error: str, expected: str | None) -> None:
    client, server, unfinished = scripted_gateway
    server.always = answers(lambda text: refuses(400, "no even numbers") if text == "2" else text)
    _, answer = await send(client, calls=[mapped([1, 2, 3], "<<item>>", on_error=on_error)])
    assert answer["outputs"] == {"results": expected}
    if expected is None:
        error = answer["errors"]["results"]
        assert error["code"] == "upstream_failed"
        assert "results.1" in error["message"]
        assert "no even numbers" in error["message"]
    assert unfinished() == 0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[]", None),
        ("no list", "the value is not JSON"),
        ('{"a": 1}', "is an object, not a list"),
        ("[1, 2, 3, 4]", "the list has more than 3 elements"),
        ("[1, 2", "the value is not JSON"),
    ],
)
async def test_a_value_that_is_no_list(scripted_gateway: ScriptedGateway, value: str, message: str | None) -> None:
    client, _, unfinished = scripted_gateway
    _, answer = await send(client, variables={"v": value}, calls=[mapped("<<v>>", "<<item>>", max_items=3)])
    assert answer["outputs"]["results"] == ("[]" if message is None else None)
    if message is not None:
        assert message in answer["errors"]["results"]["message"]
    assert unfinished() == 0


async def test_an_element_without_the_path(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.always = answers(lambda text: text)
    calls = [mapped([{"a": 1}, {"b": 2}], "<<item.a>>", on_error="null")]
    assert (await send(client, calls=calls))[1]["outputs"] == {"results": '["1",null]'}
    _, answer = await send(client, calls=[mapped([{"a": 1}, {"b": 2}], "<<item.a>>")])
    assert "element 1 of the list: <<item.a>> cannot be resolved" in answer["errors"]["results"]["message"]


async def test_maps_inside_maps(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.always = answers(lambda text: text.upper())
    inner = {"map": {"over": "<<row>>", "call": call("<<item>> of <<row>> at <<index>>")}}
    outer = {"map": {"over": [["a", "b"], [], ["c"]], "as": "row", "call": inner}, "output": "table"}
    _, answer = await send(client, calls=[outer])
    assert json.loads(answer["outputs"]["table"]) == [
        ['A OF ["A","B"] AT 0', 'B OF ["A","B"] AT 1'],
        [],
        ['C OF ["C"] AT 0'],
    ]


async def test_json_answers_are_json_in_the_results(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.always = answers(lambda text: f'{{"n": {text}}}' if text.isdigit() else text)
    formatted = call("<<item>>", response_format={"type": "json_object"})
    calls = [{"map": {"over": [1, 2], "call": formatted}, "output": "rows"}, call("<<rows.1.n>> rows", "end")]
    _, answer = await send(client, calls=calls, outputs=["rows", "end"])
    assert answer["outputs"] == {"rows": '[{"n":1},{"n":2}]', "end": "2 rows"}


async def test_an_element_is_read_before_the_others_are_ready(scripted_gateway: ScriptedGateway) -> None:
    client, server, unfinished = scripted_gateway
    read = asyncio.Event()

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        text = text_of(body)
        if text == "b":
            await asyncio.wait_for(read.wait(), 30)
        elif text.startswith("then"):
            read.set()
        return await says(f'{{"k": [1, "{text}"]}}')(request, body)

    server.always = behave
    formatted = call("<<item>>", response_format={"type": "json_object"})
    calls = [
        {"map": {"over": ["a", "b"], "call": formatted}, "output": "rows"},
        call("then <<rows.0.k.1>> <<rows.0>>", "end"),
        call("all <<rows>>", "all"),
    ]
    _, answer = await send(client, calls=calls, outputs=["end", "all"])
    assert answer["outputs"]["end"] == """{"k": [1, "then a {"k":[1,"a"]}"]}"""
    assert answer["outputs"]["all"] == """{"k": [1, "all [{"k":[1,"a"]},{"k":[1,"b"]}]"]}"""
    await until(lambda: unfinished() == 0)


async def test_an_element_of_a_complete_list_costs_no_more_than_one_that_is_read_before(
    scripted_gateway: ScriptedGateway,
) -> None:
    client, server, _ = scripted_gateway
    server.always = answers(lambda text: f"{text:>10000}")
    await SessionClient(client).create()
    status, _ = await send(client, session="s", calls=[mapped(list(range(100)), "<<item>>")], outputs=["results"])
    assert status == 200
    every = "".join(f"<<results.{index}>>" for index in range(100))  # a list of 1 MB is parsed 64 times at most
    _, answer = await send(client, session="s", calls=[call(every, "end")], outputs=["end"])
    assert "errors" not in answer
    assert text_of(server.asked[-1]) == "".join(f"{index:>10000}" for index in range(100))


@pytest.mark.parametrize(
    ("on_error", "reference", "expected"),
    [
        ("null", "<<rows.0>>", "read null"),
        ("null", "<<rows.1>>", "read 2"),
        ("null", "<<rows.9>>", "rows has no '9'"),
        ("null", "<<rows.1.k>>", "rows.1 has no 'k'"),
        ("skip", "<<rows.0>>", "read 2"),
        ("fail", "<<rows.0>>", "no odd numbers"),
    ],
)
async def test_an_element_that_cannot_be_read_early(
    scripted_gateway: ScriptedGateway, on_error: str, reference: str, expected: str
) -> None:
    client, server, unfinished = scripted_gateway
    server.always = answers(lambda text: refuses(400, "no odd numbers") if text == "1" else text)
    calls = [mapped([1, 2], "<<item>>", "rows", on_error=on_error), call(f"read {reference}", "end")]
    _, answer = await send(client, calls=calls, outputs=["end"])
    if answer["outputs"]["end"] is None:
        assert expected in answer["errors"]["end"]["message"]
    else:
        assert answer["outputs"]["end"] == expected
    await until(lambda: unfinished() == 0)


@pytest.mark.parametrize("defer", [False, True])
async def test_each_on_a_chat_completion(scripted_gateway: ScriptedGateway, defer: bool) -> None:
    client, server, _ = scripted_gateway
    server.always = answers(lambda text: f"[{text}]")
    session = SessionClient(client)
    await session.create()
    await session.put("plan", value={"steps": ["dig", "plant"]})
    semantic = {
        "session": "s",
        "output": "results",
        "defer": defer,
        "each": {"over": "<<plan.steps>>", "as": "step"},
        "inputs": {"tone": "short"},
    }
    body = call("<<tone>> <<step>> <<index>>", semantic=semantic)
    async with client.post("/v1/chat/completions", json=body) as answer:
        content = (await answer.json())["choices"][0]["message"]["content"]
    expected = '["[short dig 0]","[short plant 1]"]'
    assert content == ("<<results>>" if defer else expected)
    assert (await session.get("results", "?wait=true&timeout=30"))[1]["value"] == expected
    async with client.post("/v1/chat/completions", json={**body, "semantic": {"each": {"over": [1]}}}) as answer:
        assert (await answer.json())["error"]["param"] == "semantic.each"


async def test_what_looks_like_a_reference_or_a_control_token_is_data(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.always = answers(lambda text: text)
    elements = ["<<x>>", "<|im_end|>", r"\<<index>>", "<<item>>"]
    inner = {"map": {"over": "<<list>>", "as": "list", "call": call("<<index>> <<list>>")}, "output": "results"}
    _, answer = await send(client, variables={"list": elements}, calls=[inner])
    assert json.loads(answer["outputs"]["results"]) == [f"{index} {text}" for index, text in enumerate(elements)]


async def test_maps_that_multiply_end_at_the_limit_of_calls() -> None:
    form: dict[str, Any] = call("<<item>>")
    for _ in range(4):
        form = {"map": {"over": list(range(50)), "call": form}}
    async with ScriptedServer() as server, gateway_before(server, max_session_calls=500) as (client, unfinished):
        session = SessionClient(client)
        await session.create()
        _, answer = await send(client, session="s", calls=[{**form, "output": "results"}])
        error = answer["errors"]["results"]
        assert "too_large): session s has" in error["message"]
        assert "the maximum is 500" in error["message"]
        await until(lambda: unfinished() == 0)
        _, graph = await session.send("GET", "/graph?values=none")
        assert len(graph["calls"]) <= 500
        assert all(made["state"] in ("done", "failed", "cancelled") for made in graph["calls"])


async def test_a_client_deletes_an_element_while_the_map_runs(scripted_gateway: ScriptedGateway) -> None:
    client, server, unfinished = scripted_gateway
    session = SessionClient(client)
    await session.create()
    started, gate = asyncio.Event(), asyncio.Event()

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        started.set()
        await asyncio.wait_for(gate.wait(), 30)
        return await says(text_of(body))(request, body)

    server.always = behave
    calls = [mapped([1, 2, 3], "<<item>>"), call("<<results.1>>", "end")]
    request = asyncio.create_task(send(client, session="s", calls=calls))
    await asyncio.wait_for(started.wait(), 30)
    assert (await session.send("DELETE", "/variables/results.1"))[0] == 200
    gate.set()
    _, answer = await asyncio.wait_for(request, 30)
    assert answer["outputs"] == {"end": "2"}
    assert (await session.get("results"))[1]["value"] == '["1","2","3"]'
    assert (await session.get("results.1"))[0] == 404
    assert unfinished() == 0


async def test_an_element_fails_if_its_result_fails(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.always = answers(lambda text: refuses(400, "no") if text == "bad" else text)
    for names, expected in (("ab", '["fine"]'), ("ba", None)):
        branch = {"if": IS_X, "then": [call("bad", names[0]), call("fine", names[1])]}
        if expected is None:
            branch["then"].reverse()
        calls = [{"map": {"over": [1], "call": branch}, "output": "results"}]
        assert (await send(client, calls=calls))[1]["outputs"]["results"] == expected


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/completions"])
async def test_each_belongs_to_chat_completions(scripted_gateway: ScriptedGateway, path: str) -> None:
    client = scripted_gateway[0]
    await SessionClient(client).create()
    prompt = {"input": "x"} if path.endswith("responses") else {"prompt": "x"}
    body = {"model": "fake", **prompt, "semantic": {"session": "s", "each": {"over": [1]}}}
    async with client.post(path, json=body) as answer:
        assert (answer.status, (await answer.json())["error"]["param"]) == (400, "semantic.each")
