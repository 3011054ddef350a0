"""gateway/api/semantic/graph_calls.py: forms of a graph, from the request to their values."""

import asyncio
import json
import time
from typing import Any

import pytest
from aiohttp import web

from gateway.api.services import SERVICES
from tests.fakes.in_process_gateway import ScriptedGateway
from tests.fakes.keyed_gateway import keyed_gateway
from tests.fakes.scripted_server import Behaviour, refuses, says
from tests.gateway.api.semantic.graph_requests import IS_X, answers, call, mapped, send, text_of, until
from tests.gateway.api.semantic.session_client import SessionClient


@pytest.mark.parametrize(
    ("condition", "verdict", "holds"),
    [
        ({"equals": "yes"}, " yes\n", True),
        ({"equals": "yes"}, "yes!", False),
        ({"in": ["a", "b"]}, "b", True),
        ({"in": ["a", "b"]}, "c", False),
        ({"matches": "^ok"}, "ok then", True),
        ({"matches": "^ok"}, "not ok", False),
        ({"less_than": 3}, "2.5", True),
        ({"less_than": 3}, "3", False),
        ({"json": {"a": [1, True]}}, '{"a": [1.0, true]}', True),
        ({"json": True}, "1", False),
        ({"json": None}, "null", True),
    ],
)
async def test_a_branch_runs_one_side(
    scripted_gateway: ScriptedGateway, condition: dict[str, Any], verdict: str, holds: bool
) -> None:
    client, server, _ = scripted_gateway
    server.always = answers(lambda text: f"[{text}]")
    await SessionClient(client).create()
    _, answer = await send(
        client,
        session="s",
        variables={"verdict": verdict},
        calls=[
            {
                "if": {"value": "<<verdict>>", **condition},
                "then": [call("good", "a"), call("more <<a>>", "answer")],
                "else": [call("bad", "answer")],
                "default": "nothing",
            },
            call("got <<answer>> and <<a>>", "end"),
        ],
        outputs=["answer", "end"],
    )
    expected, a = ("[more [good]]", "[good]") if holds else ("[bad]", "nothing")
    assert answer["outputs"] == {"answer": expected, "end": f"[got {expected} and {a}]"}
    _, skipped = await SessionClient(client).get("a")
    assert (skipped["state"], skipped["value"]) == (("ready", "[good]") if holds else ("skipped", "nothing"))


async def test_a_skipped_variable_without_a_default_fails_its_readers(scripted_gateway: ScriptedGateway) -> None:
    client, _, unfinished = scripted_gateway
    _, answer = await send(
        client,
        variables={"verdict": "no"},
        calls=[{"if": {"value": "<<verdict>>", "equals": "yes"}, "then": [call("x", "a")]}, call("<<a>>", "end")],
        outputs=["a", "end"],
    )
    assert answer["outputs"] == {"a": None, "end": None}
    assert answer["errors"]["a"]["code"] == "skipped"
    assert answer["errors"]["end"]["code"] == "upstream_failed"
    reason = (
        "calls.0.if: the condition does not hold, so the calls in `then` are not run, and the branch has no `default`"
    )
    assert answer["errors"]["a"]["message"] == reason
    assert answer["errors"]["end"]["message"].endswith(f": {reason}")
    assert unfinished() == 0


NOT_RUN = {"if": {"value": "x", "equals": "y"}, "then": [call("x", "a")]}
"""A branch that makes `a` skipped."""


@pytest.mark.parametrize("branch", [NOT_RUN, {**NOT_RUN, "default": "of the branch"}])
@pytest.mark.parametrize(
    ("text", "default", "prompt"),
    [
        ("It is <<a>>.", "unknown", "It is unknown."),
        ("It is <<a>>.", "", "It is ."),
        ("It is <<a.key.0>>, or <<a>>.", {"k": "<<b>>"}, 'It is {"k":"<<b>>"}, or {"k":"<<b>>"}.'),
    ],
)
async def test_a_reader_of_a_skipped_variable_has_a_default(
    scripted_gateway: ScriptedGateway, branch: dict[str, Any], text: str, default: Any, prompt: str
) -> None:
    client, server, unfinished = scripted_gateway
    server.always = answers(lambda text: f"[{text}]")
    reader = call(text, semantic={"output": "end", "defaults": {"a": default}})
    _, answer = await send(client, calls=[reader, branch], outputs=["end"])
    assert answer["outputs"] == {"end": f"[{prompt}]"}
    assert unfinished() == 0


async def test_a_default_replaces_the_whole_default_of_a_branch(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.always = answers(lambda text: f"[{text}]")
    form = {"if": {"value": "<<verdict>>", "equals": "yes"}, "then": [call("x", "a")], "default": "b" * 1_000}
    reader = call("It is <<a>>.", semantic={"output": "end", "defaults": {"a": "own"}})
    # the branch waits, so the prompt of the reader waits for `a`
    _, answer = await send(client, calls=[reader, call("verdict", "verdict"), form], outputs=["end"])
    assert answer["outputs"] == {"end": "[It is own.]"}


async def test_a_default_in_the_text_after_the_last_slot(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.always = says("x")
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "<<s>>, not <<a>>"}]
    semantic = {"output": "end", "slots": {"s": {}}, "defaults": {"a": "own"}}
    reader = {"model": "fake", "messages": messages, "semantic": semantic}
    _, answer = await send(client, calls=[NOT_RUN, reader], outputs=["end"])
    assert answer["outputs"] == {"end": "x, not own"}


async def test_defaults_inside_forms(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.always = answers(lambda text: f"[{text}]")
    reader = call("<<item>> <<a>>", semantic={"defaults": {"a": "none"}})
    inner = call("<<draft>>", semantic={"output": "last", "defaults": {"draft": "no draft"}})
    rounds = {
        "calls": [{"if": {"value": "x", "equals": "y"}, "then": [call("x", "draft")]}, inner],
        "until": {"value": "<<last>>", "equals": "[no draft]"},
        "max": 2,
    }
    calls = [
        NOT_RUN,
        {"map": {"over": [1, 2], "call": reader}, "output": "results"},
        {"repeat": rounds, "outputs": ["last"]},
    ]
    _, answer = await send(client, calls=calls, outputs=["results", "last"])
    assert answer["outputs"] == {"results": '["[1 none]","[2 none]"]', "last": "[no draft]"}


async def test_a_default_does_not_stand_for_a_failed_value(scripted_gateway: ScriptedGateway) -> None:
    client, _, _ = scripted_gateway
    form = {"if": {"value": "many", "less_than": 3}, "then": [call("x", "a")]}
    reader = call("<<a>>", semantic={"output": "end", "defaults": {"a": "none"}})
    _, answer = await send(client, calls=[form, reader], outputs=["end"])
    assert answer["errors"]["end"]["code"] == "upstream_failed"
    assert "condition_failed" in answer["errors"]["end"]["message"]


async def test_calls_with_different_defaults_are_different_calls(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.always = answers(lambda text: f"[{text}]")
    readers = [
        call("<<a>>", temperature=0, semantic={"output": name, "defaults": {"a": default}})
        for name, default in [("one", "1"), ("two", "2"), ("again", "1")]
    ]
    gated = {"if": {"value": "<<verdict>>", "equals": "yes"}, "then": [call("x", "a")]}
    _, answer = await send(client, calls=[call("verdict", "verdict"), gated, *readers], outputs=["one", "two", "again"])
    assert answer["outputs"] == {"one": "[1]", "two": "[2]", "again": "[1]"}


@pytest.mark.parametrize(
    ("body", "name", "reason"),
    [
        (call("<<a>>", semantic={"output": "end", "defaults": {"b": 1}}), "b", "'b' is not read by the prompt"),
        (call("<<a.x>>", semantic={"output": "end", "defaults": {"a.x": 1}}), "a.x", "refers, without paths"),
        (call("text", semantic={"output": "end", "defaults": {"a": 1}}), "a", "'a' is not read by the prompt"),
        (
            {
                "model": "fake",
                "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "<<s>> <<s>>"}],
                "semantic": {"output": "end", "slots": {"s": {}}, "defaults": {"s": "x"}},
            },
            "s",
            "'s' is generated by this call",
        ),
    ],
)
async def test_a_default_that_nothing_reads_is_refused(
    scripted_gateway: ScriptedGateway, body: dict[str, Any], name: str, reason: str
) -> None:
    client, _, _ = scripted_gateway
    status, answer = await send(client, variables={"a": "x", "b": "x"}, calls=[body])
    assert (status, answer["error"]["code"]) == (400, "unknown_variable")
    assert answer["error"]["param"] == f"calls.0.semantic.defaults.{name}"
    assert reason in answer["error"]["message"]


async def test_a_condition_that_does_not_apply(scripted_gateway: ScriptedGateway) -> None:
    client, _, _ = scripted_gateway
    form = {"if": {"value": "<<v>>", "less_than": 3}, "then": [call("x", "a")]}
    _, answer = await send(client, variables={"v": "many"}, calls=[form])
    assert answer["errors"]["a"]["code"] == "condition_failed"
    assert "calls.0.if: less_than needs a number, but the value is 'many'" in answer["errors"]["a"]["message"]


def revision(**more: Any) -> dict[str, Any]:
    return {
        "repeat": {
            "calls": [call("improve <<draft>>", "revised"), call("judge <<revised>>", "verdict")],
            "carry": {"draft": "<<revised>>"},
            "until": {"value": "<<verdict>>", "equals": "good"},
            "max": 4,
            **more,
        },
        "outputs": ["revised"],
    }


def reviewer(rounds: int) -> Behaviour:
    """Return a behaviour that adds a mark to a draft, and accepts a draft with so many marks."""

    def answer(text: str) -> str:
        kind, _, rest = text.partition(" ")
        if kind == "improve":
            return f"{rest}+"
        return "good" if rest.count("+") >= rounds else "bad"

    return answers(answer)


async def test_a_repeat_ends_once_its_condition_holds(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.always = reviewer(3)
    session = SessionClient(client)
    await session.create()
    _, answer = await send(client, session="s", variables={"draft": "text"}, calls=[revision()])
    assert answer["outputs"] == {"revised": "text+++"}
    values = [
        (await session.get(f"{name}@{number}"))[1]["value"] for number in (1, 2, 3) for name in ("draft", "revised")
    ]
    assert values == ["text", "text+", "text+", "text++", "text++", "text+++"]
    assert (await session.get("draft@4"))[0] == 404
    _, answer = await send(client, calls=[{**revision(start={"draft": "new"}), "outputs": ["draft", "verdict"]}])
    assert answer["outputs"] == {"draft": "new++", "verdict": "good"}
    _, answer = await send(client, calls=[revision()])
    assert answer["outputs"] == {"revised": "+++"}, "without a start, a carried text is empty in the first round"
    _, answer = await send(client, calls=[{**revision(), "outputs": ["draft"]}])
    assert answer["outputs"] == {"draft": "++"}, "an output of the repeat is no variable from before it"


@pytest.mark.parametrize("on_max", ["fail", "last"])
async def test_a_repeat_that_never_succeeds(scripted_gateway: ScriptedGateway, on_max: str) -> None:
    client, server, unfinished = scripted_gateway
    server.always = reviewer(100)
    _, answer = await send(client, calls=[revision(on_max=on_max)])
    assert answer["outputs"] == {"revised": "++++" if on_max == "last" else None}
    if on_max == "fail":
        error = answer["errors"]["revised"]
        assert error["code"] == "max_rounds_reached"
        assert "calls.0.repeat.until does not hold after 4 rounds, the maximum" in error["message"]
    assert unfinished() == 0


async def test_forms_inside_forms(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.always = reviewer(2)
    inner = {
        "repeat": {
            **revision()["repeat"],
            "start": {"draft": "<<item>>"},
            "calls": [
                call("improve <<draft>>", "revised"),
                {
                    "if": {"value": "<<revised>>", "matches": "skip"},
                    "then": [call("judge ++", "verdict")],
                    "else": [call("judge <<revised>>", "verdict")],
                },
            ],
        },
        "outputs": ["revised"],
    }
    _, answer = await send(client, calls=[{"map": {"over": ["a", "skip"], "call": inner}, "output": "all"}])
    assert "errors" not in answer, answer
    assert json.loads(answer["outputs"]["all"]) == ["a++", "skip+"]


@pytest.mark.parametrize(
    ("form", "param", "code"),
    [
        (mapped("steps", "x"), "calls.0.map.over", "bad_reference"),
        (mapped("<<nowhere>>", "x"), "calls.0.map.over", "unknown_variable"),
        (mapped([1], "<<nowhere>>"), "calls.0.map.call.messages.0.content", "unknown_variable"),
        (mapped([1], "x", **{"as": "index"}), "calls.0.map.as", "invalid_value"),
        (mapped([1], "x", **{"as": "two words"}), "calls.0.map.as", "bad_reference"),
        (mapped([1], "x", "re.0"), "calls.0.output", "bad_reference"),
        (mapped("<<item>>", "x"), "calls.0.map.over", "unknown_variable"),
        (
            {"map": {"over": [1], "call": {"if": IS_X, "then": [call("x", "item")]}}, "output": "x"},
            "calls.0.map.as",
            "variable_already_set",
        ),
        (
            {"map": {"over": [1], "call": {"if": IS_X, "then": [call("<<b>>", "a")], "else": [call("x", "b")]}}},
            "calls.0.map.call.then.0.messages.0.content",
            "cycle",
        ),
        (mapped([1], "x", max_items=0), "calls.0.map.max_items", None),
        ({"map": {"over": [1], "call": call("x", "a")}}, "calls.0.map.call.semantic.output", None),
        ({"map": {"over": [1], "call": {**call("x"), "model": "no"}}}, "calls.0.map.call.model", "model_not_found"),
        ({"map": {"over": [1]}, "output": "x"}, "calls.0.map.call", None),
        ({"if": {"value": "x"}, "then": [call("x", "a")]}, "calls.0.if", None),
        ({"if": {"value": "x", "equals": "a", "in": ["b"]}, "then": [call("x", "a")]}, "calls.0.if", None),
        ({"if": {"value": "x", "matches": "("}, "then": [call("x", "a")]}, "calls.0.if.matches", "invalid_value"),
        ({"if": {"value": "x", "equals": "a"}}, "calls.0.then", None),
        ({"if": {"value": "x", "equals": "a"}, "then": [call("x")]}, "calls.0.then.0.semantic.output", None),
        (
            {"if": {"value": "x", "equals": "a"}, "then": [call("x", "a"), call("y", "a")]},
            "calls.0.then.1",
            "variable_already_set",
        ),
        (
            {"if": {"value": "x", "equals": "a"}, "then": [call("<<b>>", "a"), call("<<a>>", "b")]},
            "calls.0.then.0.messages.0.content",
            "cycle",
        ),
        (revision(max=0), "calls.0.repeat.max", None),
        (revision(max=101), "calls.0.repeat.max", None),
        (revision(until={"value": "<<nowhere>>", "equals": "x"}), "calls.0.repeat.until.value", "unknown_variable"),
        (revision(start={"other": "x"}), "calls.0.repeat.start", None),
        (revision(carry={"revised": "x"}), "calls.0.repeat.carry.revised", "variable_already_set"),
        ({**revision(), "outputs": ["nothing"]}, "calls.0.outputs.0", "unknown_variable"),
        ({**revision(), "outputs": []}, "calls.0.outputs", None),
        (mapped("<<results>>", "x"), "calls.0.map.over", "cycle"),
        ({**mapped([1], "x"), "unknown": 1}, "calls.0.unknown", None),
    ],
)
async def test_a_form_that_cannot_run_is_refused(
    scripted_gateway: ScriptedGateway, form: dict[str, Any], param: str, code: str | None
) -> None:
    client, server, unfinished = scripted_gateway
    session = SessionClient(client)
    await session.create()
    status, refused = await send(client, session="s", calls=[form])
    assert 400 <= status < 500
    assert (refused["error"]["param"] or "").startswith(param), refused
    assert code is None or refused["error"]["code"] == code, refused
    assert (server.asked, unfinished()) == ([], 0)
    assert (await session.send("GET", "/variables"))[1]["data"] == [], "nothing was added"


@pytest.mark.parametrize(
    ("form", "param"),
    [
        (revision(), "calls.1.outputs"),
        (mapped([1], "x", "revised"), "calls.1.output"),
        ({"if": IS_X, "then": [call("x", "revised")]}, "calls.1"),
        (call("x", "revised"), "calls.1.semantic.output"),
    ],
)
async def test_an_output_whose_name_is_taken(
    scripted_gateway: ScriptedGateway, form: dict[str, Any], param: str
) -> None:
    status, refused = await send(scripted_gateway[0], calls=[call("x", "revised"), form])
    assert (status, refused["error"]["param"]) == (409, param), refused


async def test_forms_are_nested_at_most_eight_times(scripted_gateway: ScriptedGateway) -> None:
    form: dict[str, Any] = call("x")
    for _ in range(9):
        form = {"map": {"over": [1], "call": form}}
    status, refused = await send(scripted_gateway[0], calls=[form])
    assert status == 400
    assert "nested more than 8 times" in refused["error"]["message"]


async def test_a_client_that_disconnects_ends_the_calls_of_forms(scripted_gateway: ScriptedGateway) -> None:
    client, server, unfinished = scripted_gateway
    started = asyncio.Event()

    async def hangs(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        started.set()
        await asyncio.sleep(60)
        return web.Response()

    server.always = hangs
    request = asyncio.create_task(send(client, calls=[mapped(list(range(5)), "<<item>>")]))
    await asyncio.wait_for(started.wait(), 30)
    assert unfinished() == 6
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    await until(lambda: unfinished() == 0)


async def test_the_graph_shows_forms_and_their_calls(scripted_gateway: ScriptedGateway) -> None:
    client, _, _ = scripted_gateway
    session = SessionClient(client)
    await session.create()
    await send(client, session="s", calls=[mapped([1, 2], "<<item>>")])
    _, graph = await session.send("GET", "/graph")
    form, *children = graph["calls"]
    assert (form["form"], form["parent"]) == ("map", None)
    assert [(child["parent"], child["form"], child["output"]) for child in children] == [
        (form["id"], None, "results.0"),
        (form["id"], None, "results.1"),
    ]
    assert {"from": "results.0", "to": form["id"]} in graph["edges"]
    for form_of_text in ("mermaid", "dot"):
        async with client.get(f"/v1/sessions/s/graph?format={form_of_text}") as answer:
            assert "results.1" in await answer.text()


async def test_a_stream_has_the_events_of_the_calls_of_forms(scripted_gateway: ScriptedGateway) -> None:
    client, _, _ = scripted_gateway
    body = {"calls": [mapped([1, 2], "<<item>>")], "stream": True}
    async with client.post("/v1/graphs", json=body) as answer:
        text = await answer.text()
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    names = {
        event.get("variable", {}).get("name") if isinstance(event.get("variable"), dict) else event.get("name")
        for event in events
    }
    assert {"results.0", "results.1", "results"} <= names, events[:3]


@pytest.mark.parametrize(
    ("limits", "message"),
    [({"calls": 3}, "4 calls of models and tools; the maximum is 3"), ({"seconds": 0.2}, "its 0.2 s are over")],
)
async def test_limits_end_a_form(scripted_gateway: ScriptedGateway, limits: dict[str, Any], message: str) -> None:
    client, server, unfinished = scripted_gateway

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if "seconds" in limits:
            await asyncio.sleep(60)
        return await says("x")(request, body)

    server.always = behave
    services = client.app[SERVICES] if client.app is not None else None
    assert services is not None
    sending = asyncio.create_task(
        send(client, calls=[mapped("<<v>>", "<<item>>")], variables={"v": "[1, 2, 3, 4]"}, limits=limits)
    )
    while not sending.done():
        await asyncio.sleep(0.05)
        services.sessions.end_late(time.time())
    _, answer = await sending
    error = answer["errors"]["results"]
    assert (error["code"], message in error["message"]) == ("budget_exceeded", True), error
    assert unfinished() == 0


@pytest.mark.parametrize("is_first", [True, False])
async def test_the_result_does_not_depend_on_which_call_of_a_form_fails_first(
    scripted_gateway: ScriptedGateway, is_first: bool
) -> None:
    client, server, unfinished = scripted_gateway
    failed, answered = asyncio.Event(), asyncio.Event()

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        is_bad = text_of(body) == "bad"
        if is_bad != is_first:
            await asyncio.wait_for((answered if is_bad else failed).wait(), 30)
        response = await (refuses(400, "no") if is_bad else says("good"))(request, body)
        (failed if is_bad else answered).set()
        return response

    server.always = behave
    sides = [call("fine", "a"), call("bad", "b")]
    branch = {"if": {"value": "x", "equals": "x"}, "then": sides}
    _, answer = await send(client, calls=[branch], outputs=["a", "b"])
    assert (answer["outputs"], list(answer["errors"])) == ({"a": "good", "b": None}, ["b"])
    failed.clear()
    answered.clear()
    repeat = {"repeat": {"calls": sides, "until": {"value": "<<a>>", "equals": "good"}, "max": 1}, "outputs": ["a"]}
    _, answer = await send(client, calls=[repeat])
    assert answer["outputs"] == {"a": "good"}, "no client and no condition reads `b`"
    await until(lambda: unfinished() == 0)


async def test_a_branch_chooses_between_elements_of_different_kinds(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.always = answers(lambda text: text)
    branch = {
        "if": {"value": "<<item.kind>>", "equals": "a"},
        "then": [call("<<item.x>>", "v")],
        "else": [call("<<item.y>>", "v")],
    }
    elements = [{"kind": "a", "x": 1}, {"kind": "b", "y": 2}, {"kind": "b", "x": 3}, {"x": 4}]
    calls = [{"map": {"over": elements, "call": branch, "on_error": "null"}, "output": "results"}]
    _, answer = await send(client, calls=calls, outputs=["results"])
    assert answer["outputs"] == {"results": '["1","2",null,null]'}


async def test_a_session_is_deleted_while_its_forms_run(scripted_gateway: ScriptedGateway) -> None:
    client, server, unfinished = scripted_gateway
    session = SessionClient(client)
    await session.create()
    started = asyncio.Event()

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        started.set()
        await asyncio.sleep(60)
        return web.Response()

    server.always = behave
    calls = [mapped(list(range(5)), "<<item>>"), revision()]
    request = asyncio.create_task(send(client, session="s", calls=calls))
    await asyncio.wait_for(started.wait(), 30)
    async with client.delete("/v1/sessions/s") as deleted:
        assert deleted.status == 200
    _, answer = await asyncio.wait_for(request, 30)
    assert answer["outputs"] == {"results": None, "revised": None}
    assert "session s was deleted" in answer["errors"]["results"]["message"]
    await until(lambda: unfinished() == 0)


@pytest.mark.parametrize("method", ["DELETE", "PATCH"])
async def test_an_api_key_ends_while_its_forms_run(method: str) -> None:
    started = asyncio.Event()

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if text_of(body) == "4":
            started.set()
        await asyncio.sleep(60)
        return web.Response()

    async with keyed_gateway() as gateway:
        gateway.server.always = behave
        id, key = await gateway.make_key()
        graph = {"calls": [mapped(list(range(5)), "<<item>>"), revision()]}
        request = asyncio.create_task(gateway.send("POST", "/v1/graphs", key, graph))
        await asyncio.wait_for(started.wait(), 30)
        assert gateway.services.scheduler.unfinished_calls > 5
        status, _ = await gateway.admin(method, f"/{id}", {"disabled": True} if method == "PATCH" else None)
        assert status in (200, 204)
        status, answer, _ = await asyncio.wait_for(request, 30)
        assert status == 200
        assert answer["outputs"] == {"results": None, "revised": None}
        assert "API key" in answer["errors"]["results"]["message"]
        await until(lambda: gateway.services.scheduler.unfinished_calls == 0)


@pytest.mark.parametrize("form", ["if", "repeat"])
async def test_a_form_ends_as_done_although_its_client_has_its_value(
    scripted_gateway: ScriptedGateway, form: str
) -> None:
    client, server, unfinished = scripted_gateway
    server.always = reviewer(2)
    session = SessionClient(client)
    await session.create()
    branch = {"if": {"value": "x", "equals": "x"}, "then": [call("good", "a")]}
    await send(client, session="s", calls=[branch if form == "if" else revision()])
    await until(lambda: unfinished() == 0)
    _, graph = await session.send("GET", "/graph")
    assert graph["calls"][0]["state"] == "done"


async def test_an_entry_that_is_neither_a_chat_completion_nor_a_form(scripted_gateway: ScriptedGateway) -> None:
    status, refused = await send(scripted_gateway[0], calls=[{"mpa": {}, "output": "x"}])
    assert (status, refused["error"]["param"]) == (400, "calls.0")
    assert "'mpa'" in refused["error"]["message"]
    assert "one of map, if, repeat, tool and agent" in refused["error"]["message"]
    two = {**mapped([1], "x"), "if": IS_X, "then": [call("x", "y")]}
    status, refused = await send(scripted_gateway[0], calls=[two])
    assert (status, refused["error"]["param"]) == (400, "calls.0.if")
    assert "an entry with 'map' may have map, output" in refused["error"]["message"]
