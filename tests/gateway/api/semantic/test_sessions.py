"""gateway/api/semantic/sessions.py: sessions are created, listed, read and deleted."""

import time

from tests.fakes.in_process_gateway import ScriptedGateway, gateway_before
from tests.fakes.scripted_server import ScriptedServer
from tests.gateway.api.semantic.session_client import SessionClient


async def test_a_session_is_described(scripted_gateway: ScriptedGateway) -> None:
    session = SessionClient(scripted_gateway[0])
    began = int(time.time())
    created = await session.create(metadata={"k": "v"}, ttl=60)
    assert (created["id"], created["object"], created["metadata"], created["state"]) == (
        "s",
        "session",
        {"k": "v"},
        "idle",
    )
    assert began <= created["created_at"] <= time.time()
    assert 50 <= created["expires_at"] - created["created_at"] <= 61
    assert set(created["usage"]) >= {"calls_run", "calls_shared", "prompt_tokens", "cached_tokens", "completion_tokens"}
    assert (await session.send("GET"))[1] == created


async def test_an_id_is_taken_until_its_session_is_deleted(scripted_gateway: ScriptedGateway) -> None:
    client = scripted_gateway[0]
    session = SessionClient(client)
    await session.create()
    async with client.post("/v1/sessions", json={"id": "s"}) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (409, "session_exists")
    assert (await session.send("DELETE"))[1]["state"] == "deleted"
    assert (await session.send("GET"))[0] == 404
    assert (await session.send("DELETE"))[0] == 404
    await session.create()


async def test_without_an_id_the_server_chooses_one(scripted_gateway: ScriptedGateway) -> None:
    client = scripted_gateway[0]
    ids = []
    for _ in range(2):
        async with client.post("/v1/sessions", json={}) as answer:
            ids.append((await answer.json())["id"])
    assert ids[0] != ids[1]
    async with client.get("/v1/sessions") as answer:
        listed = await answer.json()
    assert (listed["object"], [one["id"] for one in listed["data"]]) == ("list", ids)


async def test_a_running_call_makes_a_session_running_and_its_tokens_count(scripted_gateway: ScriptedGateway) -> None:
    session = SessionClient(scripted_gateway[0])
    await session.create()
    await session.put("later", value=None)
    await session.ask("Read <<later>>.", "out")
    assert (await session.send("GET"))[1]["state"] == "running"
    await session.put("later", value="x")
    assert (await session.get("out", "?wait=true"))[1]["state"] == "ready"
    described = (await session.send("GET"))[1]
    assert (described["state"], described["usage"]["calls_run"]) == ("idle", 1)
    assert described["usage"]["completion_tokens"] > 0


async def test_keys_see_only_their_own_sessions() -> None:
    async with ScriptedServer() as server, gateway_before(server, api_key=["first", "second"]) as (client, _):
        first, second = ({"Authorization": f"Bearer {key}"} for key in ("first", "second"))
        async with client.post("/v1/sessions", json={"id": "s"}, headers=first) as answer:
            assert answer.status == 201
        async with client.get("/v1/sessions", headers=second) as answer:
            assert (await answer.json())["data"] == []
        for method in ("GET", "DELETE"):
            async with client.request(method, "/v1/sessions/s", headers=second) as answer:
                assert answer.status == 404
        async with client.post("/v1/sessions", json={"id": "s"}, headers=second) as answer:
            assert answer.status == 201, "the same id names another session"
