"""gateway/api/semantic/variables.py: values are set, derived, awaited and streamed."""

import asyncio
import json
from typing import Any

import pytest

from gateway.api.services import SERVICES
from tests.fakes.in_process_gateway import ScriptedGateway
from tests.fakes.scripted_server import hangs, refuses, says
from tests.gateway.api.semantic.session_client import SessionClient


@pytest.fixture
async def session(scripted_gateway: ScriptedGateway) -> SessionClient:
    session = SessionClient(scripted_gateway[0])
    await session.create()
    return session


@pytest.mark.parametrize(
    ("value", "text"),
    [("plain", "plain"), ("", ""), (5, "5"), (True, "true"), ({"a": [1, "é"]}, '{"a":[1,"é"]}'), ([], "[]")],
)
async def test_values_are_texts_and_others_become_json(session: SessionClient, value: Any, text: str) -> None:
    status, put = await session.put("x", value=value)
    assert (status, put["state"], put["value"], put["producer"]) == (200, "ready", text, None)
    assert await session.get("x") == (200, put)


async def test_a_null_declares_a_variable_for_later(session: SessionClient) -> None:
    assert (await session.put("x", value=None))[1]["state"] == "declared"
    status, waited = await session.get("x", "?wait=true&timeout=0.05")
    assert (status, waited["error"]["code"]) == (504, "wait_timeout")
    waiting = asyncio.create_task(session.get("x", "?wait=true"))
    await asyncio.sleep(0.05)
    await session.put("x", value="now")
    assert (await waiting)[1]["value"] == "now"


async def test_a_name_is_assigned_once_and_free_after_its_deletion(session: SessionClient) -> None:
    await session.put("x", value=None)
    assert (await session.send("DELETE", "/variables/x"))[0] == 200
    assert (await session.get("x"))[0] == 404
    await session.put("x", value="1")
    status, refused = await session.put("x", value="2")
    assert (status, refused["error"]["code"]) == (409, "variable_already_set")
    listed = (await session.send("GET", "/variables"))[1]
    assert [(one["name"], one["value"]) for one in listed["data"]] == [("x", "1")]


async def test_a_template_is_ready_once_its_references_are(session: SessionClient) -> None:
    await session.put("a", value=None)
    assert (await session.put("t", template="<<a.k>> and more"))[1]["state"] != "ready"
    await session.put("a", value={"k": "v"})
    assert (await session.get("t", "?wait=true"))[1]["value"] == "v and more"
    status, refused = await session.put("u", template="<<nowhere>>")
    assert (status, refused["error"]["code"]) == (400, "unknown_variable")


async def test_a_failed_value_has_the_error_of_its_call(
    session: SessionClient, scripted_gateway: ScriptedGateway
) -> None:
    scripted_gateway[1].script = [refuses(400, "not so")]
    await session.ask("Hi", "out")
    status, failed = await session.get("out", "?wait=true")
    assert (status, failed["state"], failed["value"]) == (200, "failed", None)
    assert (failed["error"]["code"], failed["error"]["call"]) == ("engine_refused", failed["producer"])


async def test_a_growing_value_is_streamed_from_its_beginning(
    session: SessionClient, scripted_gateway: ScriptedGateway
) -> None:
    scripted_gateway[1].script = [says("one ", "two ", "three")]
    await session.ask("Count", "out")
    for _ in range(2):  # while it grows, and afterwards
        path = f"/v1/sessions/{session.id}/variables/out"
        async with session.http.get(path, headers={"Accept": "text/event-stream"}) as answer:
            assert answer.content_type == "text/event-stream"
            blocks = [block for block in (await answer.text()).split("\n\n") if block.startswith("event: ")]
        events = [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks]
        assert "".join(json.loads(e["data"])["text"] for e in events if e["event"] == "delta") == "one two three"
        assert (events[-1]["event"], json.loads(events[-1]["data"])["value"]) == ("ready", "one two three")


async def test_deleting_a_variable_cancels_the_call_that_nobody_else_needs(
    session: SessionClient, scripted_gateway: ScriptedGateway
) -> None:
    _, server, unfinished = scripted_gateway
    server.script = [hangs("some")]
    await session.ask("Hi", "out")
    async with asyncio.timeout(10):
        while not server.asked:
            await asyncio.sleep(0.01)
    status, deleted = await session.send("DELETE", "/variables/out")
    assert (status, deleted["name"]) == (200, "out")
    async with asyncio.timeout(10):
        while unfinished() or not server.aborted:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("?wait=maybe", "wait"),
        ("?wait=true&timeout=-1", "timeout"),
        ("?wait=true&timeout=nan", "timeout"),
        ("?wait=true&timeout=soon", "timeout"),
        ("?wait=true&objective=speed", "objective"),
    ],
)
async def test_invalid_queries_are_refused(session: SessionClient, query: str, param: str) -> None:
    await session.put("x", value=None)
    status, refused = await session.get("x", query)
    assert (status, refused["error"]["param"]) == (400, param)


@pytest.mark.parametrize("name", ["a b", "a-b", "9", "<<x>>", "x" * 200])
async def test_names_that_no_reference_could_have_are_refused(session: SessionClient, name: str) -> None:
    status, refused = await session.put(name, value="1")
    assert (status, refused["error"]["code"]) == (400, "bad_reference")


OBSERVE = "?observe=true"
EVENTS = {"Accept": "text/event-stream"}


async def test_an_observer_sees_the_value_and_keeps_no_call_running(
    session: SessionClient, scripted_gateway: ScriptedGateway
) -> None:
    client, server, unfinished = scripted_gateway
    server.script = [hangs("some", " text")]
    body = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}]}
    headers = {"X-Semantic-Session": session.id}
    asking = asyncio.create_task(
        client.post("/v1/chat/completions", json={**body, "semantic": {"output": "out"}}, headers=headers)
    )
    async with asyncio.timeout(10):
        while (await session.get("out"))[0] != 200:
            await asyncio.sleep(0.01)
        path = f"/v1/sessions/{session.id}/variables/out{OBSERVE}"
        async with session.http.get(path, headers=EVENTS) as answer:
            seen = b""
            while b" text" not in seen:
                seen += await answer.content.readany()
            variable = client.app[SERVICES].sessions.get("", session.id).variable("out")
            assert not variable.is_exposed, "after a loss of the engine, the call can still run again"
            assert variable.subscribers == 1, "the client that asks, and not the observer"
            asking.cancel()
            while unfinished():
                await asyncio.sleep(0.01)
            assert b"event: cancelled" in await answer.read()


async def test_an_observer_begins_again_with_the_producer(
    session: SessionClient, scripted_gateway: ScriptedGateway
) -> None:
    client, server, _ = scripted_gateway
    server.script = [hangs("first"), says("second")]
    await session.ask("Hi", "out", temperature=1)
    variable = client.app[SERVICES].sessions.get("", session.id).variable("out")
    path = f"/v1/sessions/{session.id}/variables/out{OBSERVE}"
    async with asyncio.timeout(10), session.http.get(path, headers=EVENTS) as answer:
        seen = b""
        while b"first" not in seen:
            seen += await answer.content.readany()
        assert variable.restart(), "it is not exposed, so the producer may begin again"
        while b"event: restart" not in seen:
            seen += await answer.content.readany()


async def test_observing_needs_a_stream(session: SessionClient) -> None:
    await session.put("x", value="1")
    status, refused = await session.get("x", OBSERVE)
    assert (status, refused["error"]["param"]) == (400, "observe")
