"""gateway/api/status.py: figures of the whole server, and nothing of a single API key."""

import asyncio
from typing import Any

import pytest

from gateway.api import status
from tests.fakes.in_process_gateway import GatewayClient, ScriptedGateway, gateway_before
from tests.fakes.scripted_server import ScriptedServer, hangs, says
from tests.gateway.api.semantic.session_client import SessionClient


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "_CACHE_SECONDS", 0.0)


async def read(client: GatewayClient, **options: Any) -> Any:
    async with client.get("/v1/status", **options) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


async def test_engines_are_described(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    found = await read(client)
    assert (found["object"], found["state"], found["unfinished"], found["waiting"]) == ("status", "ready", 0, {})
    assert found["engines"] == [
        {
            "name": "there",
            "models": ["fake"],
            "ready": True,
            "load": 0,
            "kv_blocks": None,
            "kv_blocks_in_use": None,
            "restarts": 0,
            "step_seconds": None,
            "problem": None,
        }
    ]
    await server.stop()
    body = {"model": "fake", "messages": [{"role": "user", "content": "a private text"}]}
    async with client.post("/v1/chat/completions", json=body) as answer:
        assert answer.status == 503
    found = await read(client)
    assert found["state"] == "starting"
    assert not found["engines"][0]["ready"]
    assert "cannot be reached" in found["engines"][0]["problem"]


async def test_calls_tokens_and_requests_are_counted(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    usage = {"prompt_tokens": 10, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
    server.script = [says("a", "b", usage=usage)]
    before = (await read(client))["counters"]
    body = {"model": "fake", "messages": [{"role": "user", "content": "x"}]}
    async with client.post("/v1/chat/completions", json=body) as answer:
        assert answer.status == 200
    after = (await read(client))["counters"]
    assert after["requests"] - before["requests"] == 1, "the call, and not the reading of the status"
    assert after["calls"]["done"] - before["calls"].get("done", 0) == 1
    grown = {kind: after["tokens"][kind] - before["tokens"].get(kind, 0) for kind in after["tokens"]}
    assert (grown["prompt"], grown["cached"], grown["completion"]) == (10, 4, 2)


async def test_unfinished_calls_are_counted_by_the_cause_of_their_wait(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.script = [hangs("begun"), hangs()]
    session = SessionClient(client)
    await session.create()
    await session.put("result", value=None)
    await session.ask("Use <<result>>.", "first")
    await session.ask("Then <<first>>.", "second")
    await session.ask("Begin.", "third")
    expected = {"tool": 1, "inputs": 1, "answer": 1}
    async with asyncio.timeout(10):
        while (found := await read(client))["waiting"] != expected:
            await asyncio.sleep(0.01)
    assert found["unfinished"] == 3
    _, graph = await session.send("GET", "/graph")
    causes = {call["output"]: call["waits_for"] for call in graph["calls"]}
    assert causes == {"first": "tool", "second": "inputs", "third": "answer"}, "the graph says the same"


async def test_an_answer_is_used_again_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "_CACHE_SECONDS", 60.0)
    async with ScriptedServer() as server, gateway_before(server) as (client, _):
        assert (await read(client))["time"] == (await read(client))["time"]
        monkeypatch.setattr(status, "_CACHE_SECONDS", 0.0)


async def test_it_needs_a_key_and_shows_nothing_of_others() -> None:
    async with ScriptedServer() as server, gateway_before(server, api_key=["first", "second"]) as (client, _):
        server.always = hangs()
        keys = [{"Authorization": f"Bearer {key}"} for key in ("first", "second")]
        async with client.post("/v1/sessions", json={"id": "hidden-session"}, headers=keys[0]) as answer:
            assert answer.status == 201
        semantic = {"session": "hidden-session", "output": "hidden_name", "defer": True}
        body = {"model": "fake", "messages": [{"role": "user", "content": "hidden text"}], "semantic": semantic}
        async with client.post("/v1/chat/completions", json=body, headers=keys[0]) as answer:
            assert answer.status == 200
        async with client.get("/v1/status", headers=keys[1]) as answer:
            text = await answer.text()
            assert answer.status == 200
            assert "hidden" not in text
        async with client.get("/v1/status") as answer:
            assert answer.status == 401
