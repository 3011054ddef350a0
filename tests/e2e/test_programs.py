"""Programs of clients that declare nothing, across restarts and engines."""

import asyncio
import json
import sqlite3
import time
import zlib
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from aiohttp import web

from gateway.config.settings import ServeSettings
from gateway.engines.openai.engine import OpenAIContext
from gateway.server.storage import open_gap_store, open_journal_storage
from tests.fakes.checkpoints import write_tiny_llama
from tests.fakes.gateway_harness import GatewayHarness
from tests.fakes.in_process_gateway import GatewayClient, gateway_before, gateway_of
from tests.fakes.postgres_server import PostgresServer
from tests.fakes.scripted_server import Behaviour, ScriptedServer, chunk, says, stream

SECRET = "a secret of the client"
ADMIN_KEY = "a long enough admin key"
ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def calls_tool(name: str, query: str = SECRET) -> Behaviour:
    """Return an answer that ends in a tool call."""

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        function = {"name": name, "arguments": json.dumps({"query": query})}
        call = {"index": 0, "id": "c", "type": "function", "function": function}
        delta = {"id": "x", "model": body["model"], "choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}
        return await stream(request, [delta, chunk(body, None, "tool_calls")])

    return behave


async def chat(client: GatewayClient, messages: Sequence[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    """Return the message of an answer."""
    body = {"model": "fake", "messages": messages, "tools": [TOOL], **fields}
    async with client.post("/v1/chat/completions", json=body) as answer:
        content = await answer.json()
        assert answer.status == 200, content
        return dict(content["choices"][0]["message"])


TOOL = {"type": "function", "function": {"name": "grep", "parameters": {"type": "object"}}}
Expected = list[list[float]]


@pytest.fixture
def expected(monkeypatch: pytest.MonkeyPatch) -> Expected:
    """Return a list that gets the durations with which engines are told to expect each program's return."""
    found: Expected = []
    monkeypatch.setattr(OpenAIContext, "retain", lambda self, returns: found.append(list(returns)))
    return found


@pytest.fixture(params=["sqlite", "postgres", "memory"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the journal of a gateway that is restarted."""
    if request.param == "postgres":
        server: PostgresServer = request.getfixturevalue("postgres")
        return server.database()
    return str(tmp_path / "journal") if request.param == "sqlite" else "memory"


async def test_a_restarted_gateway_expects_programs_at_once(journal: str, expected: Expected) -> None:
    async with ScriptedServer() as server:
        async with gateway_before(server, journal=journal) as (client, _):
            server.script = [calls_tool("grep"), says("Done.")]
            first = await chat(client, [user(f"Search for {SECRET}.")])
            result = {"role": "tool", "tool_call_id": first["tool_calls"][0]["id"], "content": "nothing"}
            await chat(client, [user(f"Search for {SECRET}."), first, result])
        assert [len(durations) for durations in expected] == [0, 1], "the second answer, by the tool that took its time"
        (learned,) = expected[1]
        expected.clear()
        async with gateway_before(server, journal=journal) as (client, _):
            server.script = [calls_tool("grep")]
            await chat(client, [user("Search for another thing.")])
        assert expected == [[]] if journal == "memory" else [[pytest.approx(learned, abs=0.001)]]


async def test_the_table_has_no_names_and_no_texts(tmp_path: Path) -> None:
    async with ScriptedServer() as server, gateway_before(server, journal=str(tmp_path / "j")) as (client, _):
        server.script = [calls_tool("grep"), says("Done.")]
        first = await chat(client, [user(f"Search for {SECRET}.")])
        result = {"role": "tool", "tool_call_id": first["tool_calls"][0]["id"], "content": SECRET}
        await chat(client, [user(f"Search for {SECRET}."), first, result])
    connection = sqlite3.connect(tmp_path / "j")
    (row,) = connection.execute("SELECT * FROM tool_gaps").fetchall()
    connection.close()
    assert "grep" not in repr(row)
    assert SECRET not in repr(row)


async def test_the_durations_of_a_key_leave_the_database_with_it(journal: str, expected: Expected) -> None:
    async def stored_tenants() -> list[str]:
        storage = await open_journal_storage(ServeSettings(journal=journal))
        gap_store = open_gap_store(storage)
        if storage is None or gap_store is None:
            return []
        tenants = [row.tenant for row in await gap_store.load(time.time())]
        await storage.close()
        return tenants

    settings: dict[str, Any] = {"journal": journal, "admin_key": [ADMIN_KEY]}
    for is_deleted in (False, True):
        async with ScriptedServer() as server, gateway_before(server, **settings) as (client, _):
            async with client.post("/v1/admin/keys", json={}, headers=ADMIN) as answer:
                key = await answer.json()
            client.session.headers["Authorization"] = f"Bearer {key['key']}"
            server.script = [calls_tool("grep"), says("Done.")]
            first = await chat(client, [user("Search.")])
            result = {"role": "tool", "tool_call_id": first["tool_calls"][0]["id"], "content": "nothing"}
            await chat(client, [user("Search."), first, result])
            if is_deleted:
                async with client.delete(f"/v1/admin/keys/{key['id']}", headers=ADMIN) as answer:
                    assert answer.status == 200
        assert await stored_tenants() == ([] if is_deleted or journal == "memory" else [key["id"]])


def test_a_restarted_process_restores_what_it_learned_but_nothing_of_deleted_keys(tmp_path: Path) -> None:
    folder, journal = write_tiny_llama(tmp_path / "tiny", window=4096), tmp_path / "j"
    arguments = ("--model", str(folder), "--kv-tokens", "8192", "--journal", str(journal), "--admin-key", ADMIN_KEY)

    def rows(*change: str) -> list[str]:
        """Change the table of durations, and return the tenants of its rows."""
        with closing(sqlite3.connect(journal)) as connection, connection:
            for statement in change:
                connection.execute(statement)
            return [tenant for (tenant,) in connection.execute("SELECT tenant FROM tool_gaps")]

    with GatewayHarness(*arguments) as server:
        key = httpx.post(f"{server.address}/v1/admin/keys", json={}, headers=ADMIN).json()
        body = {"model": "tiny", "messages": [user("Hi")], "max_tokens": 4}
        url, headers = f"{server.address}/v1/chat/completions", {"Authorization": f"Bearer {key['key']}"}
        answer = httpx.post(url, json=body, headers=headers).json()["choices"][0]["message"]
        body["messages"] = [user("Hi"), {"role": "assistant", "content": answer["content"]}, user("Go on")]
        assert httpx.post(url, json=body, headers=headers).status_code == 200
        assert server.stop() == 0
    assert "restored" not in "".join(server.log)
    assert rows() == [key["id"]]
    copied = "INSERT INTO tool_gaps SELECT 'key_deleted_before', word, updated, gaps FROM tool_gaps"
    assert len(rows(copied)) == 2
    with GatewayHarness(*arguments) as server:
        while not (restored := [line for line in server.log if "restored" in line]):
            time.sleep(0.01)
        assert httpx.delete(f"{server.address}/v1/admin/keys/{key['id']}", headers=ADMIN).status_code == 200
        assert server.stop() == 0
    assert "restored 1 durations of 1 sets of tools" in restored[0]
    assert rows() == []


class Agent:
    """An agent that starts a sub-agent in each turn. It declares nothing; only its texts show that they belong together.

    The instructions of agents and sub-agents differ, so their prompts have no beginning in common.
    """

    def __init__(self, number: int) -> None:
        self.name = f"agent {number}"
        self._messages = [{"role": "system", "content": f"You lead {number}."}, user(f"I am {self.name}. " + "x" * 600)]
        self._turns = 0

    async def turn(self, client: GatewayClient) -> None:
        """Take a turn, run the sub-agent that it starts, and hold its report for the next turn."""
        message = await chat(client, self._messages)
        (call,) = message["tool_calls"]
        task = json.loads(call["function"]["arguments"])["query"]
        instructions = {"role": "system", "content": f"{self._turns}: you search."}
        report = await chat(client, [instructions, user(task)], tool_choice="none")
        self._turns += 1
        result = {"role": "tool", "tool_call_id": call["id"], "content": report["content"]}
        self._messages += [message, result]


async def plays_agents(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """Answer an agent with the call of a sub-agent, and a sub-agent with a report."""
    messages = body["messages"]
    if body.get("tool_choice") == "none":
        return await says(f"Nothing was found for {messages[-1]['content'][-60:]}")(request, body)
    number = sum(message["role"] == "tool" for message in messages)
    name = messages[1]["content"].split(".")[0].removeprefix("I am ")
    words = " ".join(f"{zlib.crc32(f'{name} {number} {place}'.encode()):x}" for place in range(12))
    return await calls_tool("grep", f"For {name}, search for {words}")(request, body)


def names_by_request(server: ScriptedServer) -> list[str]:
    """Return the agent that each request to the server belongs to, and clear the server's record."""
    found = [name for body in server.asked for name in [json.dumps(body).partition("agent ")[2][:1]]]
    server.asked.clear()
    return found


async def test_turns_and_sub_agents_of_a_program_stay_on_one_server_and_move_together() -> None:
    async with ScriptedServer() as one, ScriptedServer() as two:
        one.always = two.always = plays_agents
        agents = [Agent(number) for number in range(4)]
        async with gateway_of([f"openai={one.url}", f"openai={two.url}"]) as client:
            for agent in agents:
                await agent.turn(client)
                await agent.turn(client)
            for _ in range(3):
                for agent in agents:
                    await agent.turn(client)
            first, second = names_by_request(one), names_by_request(two)
            assert len(first) + len(second) == 2 * 5 * len(agents)
            assert sorted({*first}) + sorted({*second}) == ["0", "2", "1", "3"], "each agent is on one server"
            await one.stop()
            for _ in range(2):
                for agent in agents:
                    await agent.turn(client)
            assert names_by_request(one) == []
            assert names_by_request(two) == list("0011223300112233")
            async with client.get("/v1/programs") as answer:
                programs = (await answer.json())["data"]
            assert [program["usage"]["calls"] for program in programs] == [14] * len(agents)
            await one.start()
            while not await is_ready(client):
                await asyncio.sleep(0.05)
            for _ in range(3):
                two.asked.clear()
                for agent in agents:
                    await agent.turn(client)
                assert names_by_request(one) == list("00"), "one program moves back: the difference of loads is large"
                assert names_by_request(two) == list("112233")


async def is_ready(client: GatewayClient) -> bool:
    """Return whether all engines of the gateway accept work."""
    async with client.get("/v1/status") as answer:
        return all(engine["ready"] for engine in (await answer.json())["engines"])
