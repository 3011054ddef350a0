"""gateway/api/responses/background.py: responses without a waiting client are generated, read, cancelled and deleted."""

import asyncio
import dataclasses
import json
from typing import Any

import pytest

from compat.openai.responses import FunctionToolCall
from gateway.api.responses.background import Background
from gateway.api.responses.builder import ResponseBuilder
from gateway.api.services import SERVICES
from gateway.graph.limits import SharedLimit
from gateway.responses import ResponseStoreError
from tests.fakes.in_process_gateway import GatewayClient, ScriptedGateway, gateway_before
from tests.fakes.scripted_server import Behaviour, ScriptedServer, chunk, refuses, says, stream
from tests.gateway.api.responses.test_routes import EVENT, ask, asked, calls


def held(go_on: asyncio.Event, *texts: str) -> Behaviour:
    """Yield the first event, and the others once the test lets it continue."""

    async def behave(request: Any, body: dict[str, Any]) -> Any:
        first, *others = texts
        response = await stream(request, [chunk(body, first)], done=False)
        await go_on.wait()
        told = [*(chunk(body, text) for text in others), chunk(body, None, "stop")]
        await response.write(b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in told))
        return response

    return behave


async def get(client: GatewayClient, id: str, status: int = 200, what: str = "", method: str = "GET") -> Any:
    async with client.request(method, f"/v1/responses/{id}{what}") as answer:
        told = await answer.json()
        assert answer.status == status, told
        return told


async def ended(client: GatewayClient, id: str) -> Any:
    """Return the response, once it is neither queued nor in progress."""
    async with asyncio.timeout(10):
        while (told := await get(client, id))["status"] in ("queued", "in_progress"):
            await asyncio.sleep(0.01)
    return told


async def begun(client: GatewayClient, id: str) -> Any:
    """Return the response, once it is in progress."""
    async with asyncio.timeout(10):
        while (told := await get(client, id))["status"] != "in_progress":
            await asyncio.sleep(0.01)
    return told


def parsed(text: str) -> list[Any]:
    found = []
    for event in text.strip().split("\n\n"):
        if event and not event.startswith(":"):
            name, data = event.split("\n")
            found.append(EVENT.validate_python(json.loads(data.removeprefix("data: "))))
            assert name == f"event: {found[-1].type}"
    return found


async def events_of(client: GatewayClient, id: str, after: int | None = None) -> list[Any]:
    query = "?stream=true" + ("" if after is None else f"&starting_after={after}")
    async with client.get(f"/v1/responses/{id}{query}") as answer:
        assert answer.status == 200, await answer.text()
        return parsed(await answer.text())


def text_of(response: Any) -> str:
    return "".join(part["text"] for item in response["output"] for part in item.get("content", ()))


def deltas(events: list[Any]) -> str:
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


async def sessions(client: GatewayClient) -> list[str]:
    async with client.get("/v1/sessions") as answer:
        return [session["id"] for session in (await answer.json())["data"]]


async def test_a_response_is_generated_without_a_waiting_client(scripted_gateway: ScriptedGateway) -> None:
    client, server, unfinished = scripted_gateway
    go_on = asyncio.Event()
    server.script = [held(go_on, "one ", "two"), says("three")]
    first = await ask(client, background=True, metadata={"for": "me"})
    assert first["status"] in ("queued", "in_progress")
    assert (first["background"], first["store"], first["output"], first["usage"]) == (True, True, [], None)
    assert await sessions(client) == [first["id"]], "it can be looked at"
    assert (await begun(client, first["id"]))["usage"] is None
    refused = await ask(client, 400, previous_response_id=first["id"])
    assert refused["error"]["code"] == "previous_response_not_ended"
    go_on.set()
    told = await ended(client, first["id"])
    assert (told["status"], told["id"], text_of(told)) == ("completed", first["id"], "one two")
    assert told["usage"]["output_tokens"] > 0
    assert told["metadata"] == {"for": "me"}
    assert told["created_at"] == first["created_at"] <= told["completed_at"]
    assert await sessions(client) == []
    assert unfinished() == 0
    await ask(client, input="And?", previous_response_id=first["id"])
    assert asked(server) == [("user", "Hello"), ("assistant", "one two"), ("user", "And?")]


async def test_a_stream_may_begin_at_any_event(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    go_on = asyncio.Event()
    server.script = [held(go_on, "one ", "two")]
    watch = client.post("/v1/responses", json={"model": "fake", "input": "x", "background": True, "stream": True})
    async with watch as answer:
        seen = b""
        while b"one " not in seen:
            seen += await answer.content.readany()
    *_, last = events = parsed(seen.decode())
    assert [event.type for event in events][:3] == ["response.created", "response.queued", "response.in_progress"]
    id = events[0].response.id
    others = [asyncio.create_task(events_of(client, id, after)) for after in (None, last.sequence_number, 0)]
    await asyncio.sleep(0.05)
    assert not any(other.done() for other in others)
    go_on.set()
    whole, rest, but_one = await asyncio.gather(*others)
    assert [event.sequence_number for event in whole] == list(range(len(whole)))
    assert whole[: len(events)] == events
    assert whole[1:] == but_one
    assert whole[last.sequence_number + 1 :] == rest
    assert (deltas(whole), deltas(rest)) == ("one two", "two")
    assert whole[-1].type == "response.completed"
    assert whole[-1].response.output_text == "one two"
    assert await events_of(client, id, last.sequence_number) == rest, "also after it has ended"
    assert await events_of(client, id) == whole


async def test_the_stream_of_a_finished_response_has_each_text_in_one_event(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.script = [says("one ", "two"), calls({"name": "look", "arguments": '{"at": "it"}'})]
    tools = [{"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}}]
    for more in ({}, {"tools": tools, "tool_choice": "required"}):
        told = await ended(client, (await ask(client, background=True, **more))["id"])
        events = await events_of(client, told["id"])
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert [event.type for event in events[:3]] == [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
        ]
        assert json.loads(events[-1].response.to_json())["output"] == told["output"]
        done = [event.item.to_dict() for event in events if event.type == "response.output_item.done"]
        assert done == told["output"]
        (last,) = await events_of(client, told["id"], 17)
        assert (last.type, last.sequence_number) == ("response.completed", 18)
    plain = await ask(client)
    assert deltas(await events_of(client, plain["id"])) == "fake"


async def test_a_response_is_cancelled(scripted_gateway: ScriptedGateway) -> None:
    client, server, unfinished = scripted_gateway
    server.script = [held(asyncio.Event(), "one ", "two")]
    first = await ask(client, background=True)
    await begun(client, first["id"])
    watching = asyncio.create_task(events_of(client, first["id"]))
    async with asyncio.timeout(5):
        told = await get(client, first["id"], what="/cancel", method="POST")
        events = await watching
        while unfinished():
            await asyncio.sleep(0.01)
    assert told["status"] == "cancelled"
    assert (events[-1].type, events[-1].response.status) == ("response.failed", "cancelled")
    assert await get(client, first["id"]) == told
    assert await get(client, first["id"], what="/cancel", method="POST") == told, "again is no other"
    assert await sessions(client) == []
    plain = await ask(client)
    refused = await get(client, plain["id"], 400, "/cancel", "POST")
    assert "was not created with background=true" in refused["error"]["message"]
    assert (await get(client, "resp_x", 404, "/cancel", "POST"))["error"]["code"] == "response_not_found"


async def test_a_client_that_arrives_while_the_response_is_stored_reads_all_of_it(
    scripted_gateway: ScriptedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, server, _ = scripted_gateway
    server.script = [says("one ", "two")]
    response_store, ending, go_on = client.app[SERVICES].response_store, asyncio.Event(), asyncio.Event()
    fails = iter([True])

    async def slowly(response: Any) -> bool:
        ending.set()
        await go_on.wait()
        if next(fails, False):
            raise ResponseStoreError("full")
        return await complete(response)

    complete = response_store.complete
    monkeypatch.setattr(response_store, "complete", slowly)
    monkeypatch.setattr("gateway.api.responses.background._RETRY_SECONDS", 0.01)
    first = await ask(client, background=True)
    await ending.wait()
    watching = [asyncio.create_task(events_of(client, first["id"], after)) for after in (None, 3)]
    await asyncio.sleep(0.05)
    assert (await get(client, first["id"]))["status"] == "in_progress", "not before it is kept"
    go_on.set()
    whole, rest = await asyncio.gather(*watching)
    assert (deltas(whole), whole[-1].type) == ("one two", "response.completed")
    assert [event.sequence_number for event in whole] == list(range(len(whole)))
    assert [(event.type, event.sequence_number) for event in rest] == [("response.completed", 4)]
    assert text_of(await get(client, first["id"])) == "one two"


async def test_the_stream_of_a_cancelled_response_ends(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    go_on, headers = asyncio.Event(), {"X-Semantic-Session": "run"}
    server.script = [held(go_on, "Ti", "ber"), says("Rome")]
    first = await ask(client, background=True, semantic={"output": "river"}, headers=headers)
    second = await ask(client, background=True, input="Where is <<river>>?", headers=headers)
    async with client.get(f"/v1/responses/{first['id']}?stream=true") as watching:
        seen = b""
        while b'"delta":"Ti"' not in seen:
            seen += await watching.content.readany()
        told = await get(client, first["id"], what="/cancel", method="POST")
        events = parsed((seen + await watching.read()).decode())
    async with client.get("/v1/sessions/run/graph") as answer:
        assert [call["state"] for call in (await answer.json())["calls"]] == ["decode", "waiting"], "others read it"
    go_on.set()
    assert text_of(await ended(client, second["id"])) == "Rome"
    assert deltas(events) == "Ti"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[-2:]] == ["response.output_item.done", "response.failed"]
    assert json.loads(events[-1].response.to_json())["output"] == told["output"]
    assert told["output"][0]["status"] == "incomplete"


@pytest.mark.parametrize("streamed", [True, False])
async def test_an_internal_error_fails_the_response(
    scripted_gateway: ScriptedGateway, monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    client, *_ = scripted_gateway
    grow, wrong = ResponseBuilder.grow, iter([True])

    def fails(builder: ResponseBuilder, *what: Any) -> Any:
        if next(wrong, False):
            raise RuntimeError("ours")
        return grow(builder, *what)

    monkeypatch.setattr(ResponseBuilder, "grow", fails)
    if streamed:
        watch = client.post("/v1/responses", json={"model": "fake", "input": "x", "background": True, "stream": True})
        async with watch as answer:
            *_, last = parsed(await answer.text())
        assert (last.type, last.response.error.message) == ("response.failed", "the answer cannot be serialized")
    else:
        told = await ended(client, (await ask(client, background=True))["id"])
        assert (told["status"], told["error"]["message"]) == ("failed", "the answer cannot be serialized")
    assert await sessions(client) == []


async def test_a_deleted_response_is_not_generated(scripted_gateway: ScriptedGateway) -> None:
    client, server, unfinished = scripted_gateway
    server.script = [held(asyncio.Event(), "one ", "two")]
    first = await ask(client, background=True)
    await begun(client, first["id"])
    assert (await get(client, first["id"], method="DELETE"))["deleted"]
    async with asyncio.timeout(5):
        while unfinished():
            await asyncio.sleep(0.01)
        while await sessions(client):
            await asyncio.sleep(0.01)
    await get(client, first["id"], 404)


async def test_a_refusal_of_the_engine_fails_the_response(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.script = [refuses(400, "too bad"), refuses(400, "too bad")]
    told = await ended(client, (await ask(client, background=True))["id"])
    assert (told["status"], told["output"]) == ("failed", [])
    assert "too bad" in told["error"]["message"]
    watch = client.post("/v1/responses", json={"model": "fake", "input": "x", "background": True, "stream": True})
    async with watch as answer:
        assert answer.status == 200
        *_, last = parsed(await answer.text())
    assert (last.type, last.response.status) == ("response.failed", "failed")


async def test_responses_of_a_session_read_and_produce_variables(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    headers = {"X-Semantic-Session": "run"}
    server.script = [says("Tiber"), says("Rome"), says("so")]
    first = await ask(client, background=True, semantic={"output": "river"}, headers=headers)
    second = await ask(client, background=True, input="Where is <<river>>?", headers=headers)
    assert second["semantic"]["session"] == "run"
    assert text_of(await ended(client, second["id"])) == "Rome"
    assert asked(server) == [("user", "Where is Tiber?")]
    assert await sessions(client) == ["run"]
    async with client.get("/v1/sessions/run/variables/river") as answer:
        assert (await answer.json())["value"] == "Tiber"
    await ask(client, input="So?", previous_response_id=second["id"], headers=headers)
    refused = await ask(client, 400, input="So?", previous_response_id=second["id"])
    assert refused["error"]["code"] == "session_conflict"
    async with client.delete("/v1/sessions/run") as answer:
        assert answer.status == 200
    for id in (first["id"], second["id"]):
        await get(client, id, 404)


async def test_the_call_of_a_cancelled_response_continues_for_other_readers(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    headers, go_on = {"X-Semantic-Session": "run"}, asyncio.Event()
    server.script = [held(go_on, "Ti", "ber"), says("Rome")]
    first = await ask(client, background=True, semantic={"output": "river"}, headers=headers)
    await begun(client, first["id"])
    second = await ask(client, background=True, input="Where is <<river>>?", headers=headers)
    assert (await get(client, first["id"], what="/cancel", method="POST"))["status"] == "cancelled"
    go_on.set()
    assert text_of(await ended(client, second["id"])) == "Rome"
    assert asked(server) == [("user", "Where is Tiber?")]


async def test_the_call_of_a_cancelled_response_without_other_readers_stops(scripted_gateway: ScriptedGateway) -> None:
    client, server, unfinished = scripted_gateway
    server.script = [held(asyncio.Event(), "Ti", "ber")]
    first = await ask(client, background=True, semantic={"output": "river"}, headers={"X-Semantic-Session": "run"})
    await begun(client, first["id"])
    assert (await get(client, first["id"], what="/cancel", method="POST"))["status"] == "cancelled"
    async with asyncio.timeout(5):
        while unfinished():
            await asyncio.sleep(0.01)
    async with client.get("/v1/sessions/run/variables/river") as answer:
        assert answer.status == 404, "its name is free"


async def test_a_response_over_a_limit_leaves_no_session() -> None:
    async with ScriptedServer() as server, gateway_before(server, max_session_bytes=1_000) as (client, _):
        refused = await ask(client, 413, background=True, input="x" * 2_000)
        assert refused["error"]["code"] == "too_large"
        assert (await sessions(client), server.asked) == ([], [])


async def test_the_end_of_a_session_ends_its_responses(scripted_gateway: ScriptedGateway) -> None:
    client, server, unfinished = scripted_gateway
    server.script = [held(asyncio.Event(), "a"), held(asyncio.Event(), "b")]
    own = await ask(client, background=True)
    inside = await ask(client, background=True, headers={"X-Semantic-Session": "run"})
    for id in (own["id"], inside["id"]):
        await begun(client, id)
    for id in (own["id"], "run"):
        async with client.delete(f"/v1/sessions/{id}") as answer:
            assert answer.status == 200
    assert (await ended(client, own["id"]))["status"] == "cancelled"
    await get(client, inside["id"], 404)
    async with asyncio.timeout(5):
        while unfinished():
            await asyncio.sleep(0.01)


async def test_a_response_without_its_call_fails(scripted_gateway: ScriptedGateway) -> None:
    """Check a response whose server died between the two records."""
    client, server, _ = scripted_gateway
    server.script = [held(asyncio.Event(), "one ", "two")]
    first = await ask(client, background=True)
    services = client.app[SERVICES]
    row = await services.response_store.find("", first["id"])
    assert row is not None
    for id, call_session in (("resp_lost", "nowhere"), ("resp_here", first["id"])):
        await services.response_store.add(dataclasses.replace(row, id=id, call_session=call_session))
    assert (await get(client, "resp_here"))["status"] in ("queued", "in_progress")
    for _ in range(2):
        lost = await get(client, "resp_lost")
        assert (lost["status"], lost["error"]["type"]) == ("failed", "interrupted")
        assert lost["created_at"] == first["created_at"]
    await ask(client, 400, previous_response_id="resp_here")
    await ask(client, previous_response_id="resp_lost")
    async with client.get("/v1/responses/resp_here?stream=true") as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (503, "engine_unavailable")


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"store": False}, "background"),
        ({"headers": {"X-Semantic-Session": "s", "X-Semantic-Defer": "true"}}, "background"),
        ({"previous_response_id": "resp_none"}, "previous_response_id"),
        ({"input": "<<nobody>>", "headers": {"X-Semantic-Session": "s"}}, "input"),
        ({"semantic": {"output": "a"}}, "semantic.output"),
    ],
)
async def test_invalid_requests_are_refused_and_leave_nothing(
    scripted_gateway: ScriptedGateway, more: Any, param: str | None
) -> None:
    client, server, unfinished = scripted_gateway
    assert (await ask(client, 400, background=True, **more))["error"]["param"] == param
    assert set(await sessions(client)) <= {"s"}
    assert (server.asked, unfinished()) == ([], 0)


async def test_a_server_without_a_response_store_refuses_background_responses() -> None:
    async with ScriptedServer() as server, gateway_before(server, max_kept_bytes=0) as (client, _):
        assert (await ask(client, 400, background=True))["error"]["param"] == "background"
        assert server.asked == []


@pytest.mark.parametrize("query", ["stream=yes", "starting_after=-1", "starting_after=x", "starting_after="])
async def test_invalid_queries_are_refused(scripted_gateway: ScriptedGateway, query: str) -> None:
    client, *_ = scripted_gateway
    refused = await get(client, (await ask(client))["id"], 400, f"?{query}")
    assert refused["error"]["param"] == query.split("=")[0]


async def test_keys_see_only_their_own_responses() -> None:
    async with ScriptedServer() as server, gateway_before(server, api_key=["one-key", "other-key"]) as (client, _):
        mine = await ask(client, key="one-key", background=True)
        for method, what in (("GET", ""), ("GET", "?stream=true"), ("GET", "/input_items"), ("POST", "/cancel")):
            headers = {"Authorization": "Bearer other-key"}
            async with client.request(method, f"/v1/responses/{mine['id']}{what}", headers=headers) as answer:
                assert answer.status == 404


async def test_the_input_of_a_response_is_listed(scripted_gateway: ScriptedGateway) -> None:
    client, *_ = scripted_gateway
    items: list[Any] = [
        {"role": "user", "content": "a"},
        {"type": "reasoning", "summary": [], "id": "rs_mine"},
        {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "there"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": [{"type": "input_text", "text": "c"}]},
    ]
    id = (await ask(client, input=items))["id"]
    listed = await get(client, id, what="/input_items?order=asc")
    assert [item["type"] for item in listed["data"]] == [item.get("type", "message") for item in items]
    assert [item.get("content", [{}])[0].get("text") for item in listed["data"]] == ["a", None, None, None, "b", "c"]
    assert listed["data"][1]["id"] == "rs_mine"
    ids = [item["id"] for item in listed["data"]]
    assert len(set(ids)) == len(ids)
    assert (listed["first_id"], listed["last_id"], listed["has_more"]) == (ids[0], ids[-1], False)
    assert [item["id"] for item in (await get(client, id, what="/input_items"))["data"]] == ids[::-1]
    some = await get(client, id, what=f"/input_items?order=asc&limit=2&after={ids[1]}")
    assert ([item["id"] for item in some["data"]], some["has_more"]) == (ids[2:4], True)
    for query in ("limit=0", "limit=101", "order=up", "after=nothing"):
        refused = await get(client, id, 400, f"/input_items?{query}")
        assert refused["error"]["param"] == query.split("=")[0]
    plain = await ask(client, input="just text")
    (item,) = (await get(client, plain["id"], what="/input_items"))["data"]
    assert item["content"] == [{"type": "input_text", "text": "just text"}]


async def test_a_resumed_response_knows_the_tools_of_earlier_items(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    go_on = asyncio.Event()
    namespace = {"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "look"}]}
    added = {"type": "additional_tools", "tools": [namespace]}
    earlier = await ask(client, input=[added, {"role": "user", "content": "x"}])

    async def waits(request: Any, body: dict[str, Any]) -> Any:
        await go_on.wait()
        return await calls({"name": "n__look", "arguments": "{}"})(request, body)

    server.script = [waits]
    first = await ask(client, background=True, previous_response_id=earlier["id"])
    again = Background(client.app[SERVICES], SharedLimit(1 << 20))
    await again.resume_all([])
    resumed = again.find("", first["id"])
    assert resumed is not None
    go_on.set()
    await asyncio.wait_for(resumed.finished.wait(), 10)
    (item,) = resumed.response.output
    assert isinstance(item, FunctionToolCall)
    assert (item.name, item.namespace) == ("look", "n")
    assert (await ended(client, first["id"]))["output"][0]["namespace"] == "n"
    await again.close()
