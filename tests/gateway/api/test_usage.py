"""gateway/api/usage.py: what calls have used; costs in answers; budgets of sessions."""

import asyncio
import json
import time
from typing import Any

import pytest

from tests.fakes.in_process_gateway import GatewayClient, gateway_before, gateway_of
from tests.fakes.media_server import MediaServer
from tests.fakes.scripted_server import ScriptedServer, breaks_off, chunk, hangs, refuses, says, stream
from tests.gateway.api.semantic.session_client import SessionClient

PRICES = {"price": ["fake=2/1/10"]}
"""Prices of a million tokens: prompt, cached, completion."""
USAGE = {
    "prompt_tokens": 1_000_000,
    "completion_tokens": 500_000,
    "prompt_tokens_details": {"cached_tokens": 400_000},
    "completion_tokens_details": {"reasoning_tokens": 100_000},
}
COST = 0.6 * 2 + 0.4 * 1 + 0.5 * 10


async def usage(client: GatewayClient, query: str = "", **headers: str) -> Any:
    async with client.get(f"/v1/usage{query}", headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        return (await answer.json())["data"]


async def ask(client: GatewayClient, path: str = "/v1/chat/completions", key: str = "", **fields: Any) -> Any:
    body = {"model": "fake", "messages": [{"role": "user", "content": "x"}], **fields}
    headers = {"X-Include-Cost": "true"} | ({"Authorization": f"Bearer {key}"} if key else {})
    async with client.post(path, json=body, headers=headers) as answer:
        if answer.content_type == "text/event-stream":
            text = await answer.text()
            return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        return await answer.json()


async def test_a_call_is_recorded_with_tokens_and_cost() -> None:
    async with ScriptedServer() as server, gateway_before(server, **PRICES) as (client, _):
        server.script = [says("a", usage=USAGE)]
        answer = await ask(client)
        assert answer["usage"]["cost"] == pytest.approx(COST)
        (row,) = await usage(client, "?group_by=model,day,key,session")
        async with client.get("/v1/programs") as listed:
            (program,) = (await listed.json())["data"]
        day = time.strftime("%Y-%m-%d", time.gmtime())
        assert row["cost"] == pytest.approx(COST)
        assert {**row, "cost": 0} == {
            "model": "fake",
            "day": day,
            "key": "",
            "session": program["id"],
            "calls": 1,
            "tool_calls": 0,
            "cost": 0,
            "prompt_tokens": 1_000_000,
            "cached_tokens": 400_000,
            "completion_tokens": 500_000,
            "reasoning_tokens": 100_000,
            "lost_tokens": 0,
        }


async def test_the_spend_of_a_program_is_that_of_its_session() -> None:
    async with ScriptedServer() as server, gateway_before(server, **PRICES) as (client, _):
        server.always = says("a", usage=USAGE)
        await ask(client)
        turns = [{"role": role, "content": text} for role, text in (("user", "x"), ("assistant", "a"), ("user", "y"))]
        await ask(client, messages=turns)
        await ask(client, messages=[{"role": "user", "content": "z"}])
        async with client.get("/v1/programs") as listed:
            other, program = (await listed.json())["data"]
        assert program["usage"]["cost"] == pytest.approx(2 * COST)
        (row,) = await usage(client, f"?session={program['id']}")
        assert (row["calls"], row["cost"]) == (2, pytest.approx(2 * COST))
        (row,) = await usage(client, f"?session={other['id']}")
        assert row["calls"] == 1


async def test_without_programs_plain_calls_have_no_session() -> None:
    async with ScriptedServer() as server, gateway_before(server, programs=False, **PRICES) as (client, _):
        await ask(client)
        (row,) = await usage(client, "?group_by=session")
        assert row["session"] == ""


async def test_each_api_can_include_the_cost() -> None:
    async with ScriptedServer() as server, gateway_before(server, **PRICES) as (client, _):
        server.always = says("a", usage=USAGE)
        *_, last = await ask(client, stream=True, stream_options={"include_usage": True})
        assert last["usage"]["cost"] == pytest.approx(COST)
        answer = await ask(client, n=2)
        assert answer["usage"]["cost"] == pytest.approx(2 * COST)
        message = await ask(client, "/v1/messages", max_tokens=5)
        assert message["usage"]["cost"] == pytest.approx(COST)
        events = await ask(client, "/v1/messages", max_tokens=5, stream=True)
        (delta,) = [event for event in events if event["type"] == "message_delta"]
        assert delta["usage"]["cost"] == pytest.approx(COST)
        async with client.post(
            "/v1/responses", json={"model": "fake", "input": "x"}, headers={"X-Include-Cost": "true"}
        ) as whole:
            assert (await whole.json())["usage"]["cost"] == pytest.approx(COST)
        (row,) = await usage(client)
        assert (row["calls"], row["cost"]) == (6, pytest.approx(6 * COST))


async def test_answers_have_no_cost_unless_the_client_requests_it() -> None:
    async with (
        ScriptedServer() as server,
        gateway_before(server, **PRICES) as (client, _),
        client.post(
            "/v1/chat/completions", json={"model": "fake", "messages": [{"role": "user", "content": "x"}]}
        ) as answer,
    ):
        assert "cost" not in (await answer.json())["usage"]


async def test_without_prices_there_is_no_ledger_unless_it_is_on() -> None:
    async with ScriptedServer() as server:
        async with gateway_before(server) as (client, _), client.get("/v1/usage") as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (404, "no_ledger")
        async with gateway_before(server, ledger="on") as (client, _):
            await ask(client)
            assert (await usage(client))[0]["calls"] == 1


async def test_keys_see_their_own_usage() -> None:
    async with (
        ScriptedServer() as server,
        gateway_before(server, ledger="on", api_key=["first-key", "second-key"]) as (client, _),
    ):
        await ask(client, key="first-key")
        first, second = {"Authorization": "Bearer first-key"}, {"Authorization": "Bearer second-key"}
        (row,) = await usage(client, "?group_by=key", **first)
        assert row["calls"] == 1
        assert "first-key" not in row["key"]
        assert await usage(client, "?group_by=key", **second) == []
        assert await usage(client, f"?key={row['key']}&group_by=key", **second) == []


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("group_by=secret", "group_by"),
        ("group_by=key,key", "group_by"),
        ("group_by=key%3B+DROP+TABLE+spend", "group_by"),
        ("start=yesterday", "start"),
        ("end=-1", "end"),
        ("start=99999999999999999999", "start"),
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("offset=-1", "offset"),
        ("offset=99999999999", "offset"),
        ("key=" + "x" * 501, "key"),
    ],
)
async def test_bad_queries_are_refused(query: str, param: str) -> None:
    async with (
        ScriptedServer() as server,
        gateway_before(server, ledger="on") as (client, _),
        client.get(f"/v1/usage?{query}") as answer,
    ):
        assert answer.status == 400
        assert (await answer.json())["error"]["param"] == param


async def test_times_are_seconds_or_days() -> None:
    async with ScriptedServer() as server, gateway_before(server, ledger="on") as (client, _):
        await ask(client)
        day = time.strftime("%Y-%m-%d", time.gmtime())
        assert (await usage(client, f"?start={day}"))[0]["calls"] == 1
        assert (await usage(client, f"?start={int(time.time()) - 60}&end={int(time.time()) + 60}"))[0]["calls"] == 1
        assert (await usage(client, f"?end={day}"))[0]["calls"] == 0
        assert await usage(client, f"?end={day}&group_by=model") == []


async def test_pages() -> None:
    async with ScriptedServer() as server, gateway_before(server, ledger="on") as (client, _):
        for number in range(5):
            session = SessionClient(client, f"s{number}")
            await session.create()
            await session.ask("x", "v")
            await session.get("v", "?wait=true")
        async with client.get("/v1/usage?group_by=session&limit=2&offset=2") as answer:
            page = await answer.json()
        assert [row["session"] for row in page["data"]] == ["s2", "s3"]
        assert (page["has_more"], page["next"]) == (True, 4)


async def test_failed_and_lost_calls_are_recorded_once() -> None:
    """Count the tokens of the last attempt, and beside them those that were lost."""
    async with ScriptedServer() as server, gateway_before(server, ledger="on") as (client, _):
        server.script = [breaks_off("a", "b"), says("c", "d", "e")]
        await ask(client)
        server.script = [refuses(400, "no")]
        await ask(client)
        (row,) = await usage(client)
        assert (row["calls"], row["lost_tokens"], row["completion_tokens"]) == (2, 2, 3)


async def test_a_call_whose_client_disconnects_is_recorded() -> None:
    async with ScriptedServer() as server, gateway_before(server, ledger="on") as (client, unfinished):
        server.script = [hangs("a", "b")]
        body = {"model": "fake", "messages": [{"role": "user", "content": "x"}], "stream": True}
        async with client.post("/v1/chat/completions", json=body) as answer:
            while b"b" not in await answer.content.readline():
                pass
            answer.close()
        while unfinished():
            await asyncio.sleep(0.01)
        (row,) = await usage(client)
        assert (row["calls"], row["completion_tokens"]) == (1, 2)


async def test_embeddings_of_a_server_elsewhere_are_recorded() -> None:
    async with (
        MediaServer() as server,
        gateway_of([f"openai={server.url}"], price=["fake=1000000/0"]) as client,
    ):
        async with client.post("/v1/embeddings", json={"model": "fake", "input": "x"}) as answer:
            assert answer.status == 200, await answer.text()
            await answer.read()
        (row,) = await usage(client, "?group_by=model")
        assert (row["calls"], row["prompt_tokens"], row["cost"]) == (1, 5, 5.0)


async def test_sessions_and_their_calls_have_costs() -> None:
    async with ScriptedServer() as server, gateway_before(server, **PRICES) as (client, _):
        server.script = [says("a", usage=USAGE)]
        session = SessionClient(client)
        await session.create()
        await session.ask("x", "v")
        await session.get("v", "?wait=true")
        assert (await session.send("GET"))[1]["usage"]["cost"] == pytest.approx(COST)
        (call,) = (await session.send("GET", "/graph"))[1]["calls"]
        assert call["cost"] == pytest.approx(COST)


# budgets of sessions


def words(count: int) -> Any:
    """Return a behaviour that streams a long answer, one word in each event."""

    async def behave(request: Any, body: Any) -> Any:
        events = [chunk(body, "word ") for _ in range(count)]
        return await stream(request, [*events, chunk(body, None, "stop")])

    return behave


async def test_a_session_ends_at_its_limit_and_keeps_its_values() -> None:
    async with ScriptedServer() as server, gateway_before(server, ledger="on") as (client, unfinished):
        session = SessionClient(client)
        described = await session.create(limits={"tokens": 60})
        assert described["limits"] == {"tokens": 60, "cost": None, "calls": None, "seconds": None}
        server.script = [words(10), words(1000)]
        await session.ask("x" * 40, "first")
        assert (await session.get("first", "?wait=true"))[1]["value"] == "word " * 10
        await session.ask("y" * 40, "second")
        await session.ask("<<second>>", "third")
        _, second = await session.get("second", "?wait=true")
        _, third = await session.get("third", "?wait=true")
        assert (second["state"], second["error"]["code"]) == ("failed", "budget_exceeded")
        assert (third["state"], third["error"]["code"]) == ("failed", "budget_exceeded")
        assert (await session.get("first"))[1]["state"] == "ready"
        status, refused = await session.ask("z", "fourth")
        assert (status, refused["error"]["code"]) == (429, "budget_exceeded")
        (used,) = await usage(client, "?session=s")
        assert used["prompt_tokens"] + used["completion_tokens"] == 60
        assert unfinished() == 0


async def test_a_graph_has_limits_of_its_own() -> None:
    async with ScriptedServer() as server, gateway_before(server, **PRICES) as (client, _):
        server.always = words(1000)
        call = {"model": "fake", "messages": [{"role": "user", "content": "x" * 40}], "semantic": {"output": "a"}}
        body = {"calls": [call], "limits": {"cost": 0.001}}
        async with client.post("/v1/graphs", json=body) as answer:
            ended = await answer.json()
        assert ended["errors"]["a"]["code"] == "budget_exceeded"
        assert 90 <= ended["usage"]["completion_tokens"] <= 101
        async with client.post("/v1/graphs", json={**body, "limits": {"tokens": 5}}) as answer:
            ended = await answer.json()
        assert "has no room for this call: used 0 of 5 tokens" in ended["errors"]["a"]["message"]
        assert ended["usage"]["total_tokens"] == 0, "the prompt was not prefilled"
        async with client.post("/v1/graphs", json={**body, "session": "no"}) as answer:
            assert answer.status == 404
        await SessionClient(client).create()
        async with client.post("/v1/graphs", json={**body, "session": "s"}) as answer:
            assert (answer.status, (await answer.json())["error"]["param"]) == (400, "limits")


async def test_an_answer_that_ends_at_the_limit_is_whole() -> None:
    async with ScriptedServer() as server, gateway_before(server) as (client, _):
        session = SessionClient(client)
        await session.create(limits={"tokens": 12})
        server.script = [says("a", "b", usage={"prompt_tokens": 7, "completion_tokens": 5})]
        await session.ask("x", "v")
        assert (await session.get("v", "?wait=true"))[1]["value"] == "ab"
        status, _ = await session.ask("x", "w")
        assert status == 429


@pytest.mark.parametrize(
    "limits",
    [{"tokens": 0}, {"tokens": -1}, {"tokens": 1.5}, {"cost": 0}, {"cost": "a"}, {"other": 1}, 5],
)
async def test_bad_limits_are_refused(limits: Any) -> None:
    async with (
        ScriptedServer() as server,
        gateway_before(server, **PRICES) as (client, _),
        client.post(
            "/v1/sessions", data=json.dumps({"limits": limits}), headers={"Content-Type": "application/json"}
        ) as answer,
    ):
        assert answer.status == 400
        assert (await answer.json())["error"]["param"].startswith("limits")


async def test_a_limit_of_cost_needs_prices() -> None:
    async with (
        ScriptedServer() as server,
        gateway_before(server) as (client, _),
        client.post("/v1/sessions", json={"limits": {"cost": 1.0}}) as answer,
    ):
        assert answer.status == 400
        assert "no prices" in (await answer.json())["error"]["message"]
