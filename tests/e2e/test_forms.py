"""Forms of graphs survive that the server is killed while they add calls."""

import asyncio
import json
import os
import sys
from collections import Counter
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.fakes import tool_server
from tests.fakes.gateway_harness import GatewayHarness
from tests.fakes.scripted_server import ScriptedServer, chunk, says, stream

pytestmark = [pytest.mark.slow, pytest.mark.waits]

KILLS = int(os.environ.get("MYNA_TEST_KILLS", "20"))
ITEMS = 6
ROUNDS = 4
TURNS = 3


async def answer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """Answer a prompt with a function of it, after a moment."""
    message = body["messages"][0] if "tools" in body else body["messages"][-1]
    kind, _, text = str(message["content"]).partition(" ")
    await asyncio.sleep(0.03)
    match kind:
        case "list":
            items = [{"n": number, "text": f"{text} <<x>> {number}"} for number in range(ITEMS)]
            return await says(*[piece + " " for piece in json.dumps({"items": items}).split(" ")])(request, body)
        case "improve":
            return await says(f"{text}+")(request, body)
        case "agent":
            return await agent_answer(request, body, int(text))
        case "judge":
            return await says("good" if text.count("+") == ROUNDS else "bad")(request, body)
    return await says(digest(text))(request, body)


async def agent_answer(request: web.Request, body: dict[str, Any], agent: int) -> web.StreamResponse:
    """Call a tool in each of TURNS answers, then answer with all results."""
    results = [message["content"] for message in body["messages"] if message["role"] == "tool"]
    if len(results) == TURNS:
        return await says("; ".join(results))(request, body)
    arguments = json.dumps({"seconds": 0.03, "label": f"agent{agent}.{len(results)}"})
    called = {"index": 0, "id": "x", "type": "function", "function": {"name": "count", "arguments": arguments}}
    first = chunk(body, None)
    first["choices"][0]["delta"]["tool_calls"] = [called]
    return await stream(request, [first, chunk(body, None, "tool_calls")])


def digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=8).hexdigest()


def call(text: str, output: str | None = None) -> dict[str, Any]:
    semantic = {} if output is None else {"semantic": {"output": output}}
    return {"model": "fake", "messages": [{"role": "user", "content": text}], **semantic}


def graph(number: int) -> dict[str, Any]:
    """Return a map over a list that is generated, with a repeat for each element. Deferred templates keep it running."""
    repeat = {
        "repeat": {
            "calls": [call("improve <<draft>>", "revised"), call("judge <<revised>>", "verdict")],
            "carry": {"draft": "<<revised>>"},
            "start": {"draft": "<<item.text>>"},
            "until": {"value": "<<verdict>>", "equals": "good"},
            "max": ROUNDS + 1,
        },
        "outputs": ["revised"],
    }
    names = [f"{name}{number}" for name in ("plan", "texts", "drafts")]
    plan, texts, drafts = names
    return {
        "session": "s",
        "variables": {f"keep_{name}": {"template": f"<<{name}>>"} for name in names},
        "calls": [
            call(f"list {number}", plan),
            {"map": {"over": f"<<{plan}.items>>", "call": call("say <<index>> <<item>>")}, "output": texts},
            {"map": {"over": f"<<{plan}.items>>", "call": repeat}, "output": drafts},
        ],
    }


def expected(number: int) -> dict[str, list[str]]:
    """Return the results of a graph."""
    items = [{"n": index, "text": f"{number} <<x>> {index}"} for index in range(ITEMS)]
    texts = [f"{index} {json.dumps(item, separators=(',', ':'))}" for index, item in enumerate(items)]
    return {
        f"texts{number}": [digest(text) for text in texts],
        f"drafts{number}": [f"{item['text']}{'+' * ROUNDS}" for item in items],
    }


class Client:
    """A client of one gateway process. `ready`: values that any process has shown as ready."""

    def __init__(self, http: aiohttp.ClientSession, address: str, ready: dict[str, str]) -> None:
        self._http = http
        self._session = f"{address}/v1/sessions/s"
        self._graphs = f"{address}/v1/graphs"
        self._ready = ready

    async def begin(self, number: int) -> None:
        """Send a graph, and wait until it is accepted."""
        async with self._http.post(self._graphs, json={**graph(number), "stream": True}) as response:
            assert response.status == 200, await response.text()
            await response.content.readline()

    async def check(self) -> list[str]:
        """Check that no ready value has changed, and return the names of variables that are not final."""
        async with self._http.get(f"{self._session}/variables") as response:
            variables = (await response.json())["data"]
        values = {variable["name"]: variable["value"] for variable in variables if variable["state"] == "ready"}
        assert {name: values.get(name) for name in self._ready} == self._ready
        self._ready |= values
        broken = [variable for variable in variables if variable["state"] in ("failed", "cancelled", "skipped")]
        assert not broken, broken
        return [variable["name"] for variable in variables if variable["state"] != "ready"]

    async def calls(self) -> list[dict[str, Any]]:
        """Return the calls of the session."""
        async with self._http.get(f"{self._session}/graph") as response:
            return list((await response.json())["calls"])


async def test_no_element_is_lost_or_made_twice_while_the_gateway_is_killed(tmp_path: Path) -> None:
    random = Random(7)
    ready: dict[str, str] = {}
    graphs = inside = 0
    async with ScriptedServer() as upstream, aiohttp.ClientSession() as http:
        upstream.always = answer
        arguments = ("--engine", f"openai={upstream.url}", "--journal", str(tmp_path / "j"))
        for number in range(KILLS + 1):
            server = await asyncio.to_thread(GatewayHarness, *arguments)
            try:
                client = Client(http, server.address, ready)
                if not number:
                    async with http.post(f"{server.address}/v1/sessions", json={"id": "s"}) as response:
                        assert response.status == 201
                if number == KILLS:
                    async with asyncio.timeout(60):
                        while await client.check():
                            await asyncio.sleep(0.1)
                    calls = await client.calls()
                    break
                if len(await client.check()) < 10:
                    await client.begin(graphs)
                    graphs += 1
                await asyncio.sleep(random.uniform(0.0, 0.3))
                inside += bool(await client.check())
            finally:
                server.process.kill()
                await asyncio.to_thread(server.stop)
    assert inside > KILLS // 2, "most kills were in the middle of forms"
    for number in range(graphs):
        for name, results in expected(number).items():
            assert json.loads(ready[f"keep_{name}"]) == json.loads(ready[name]) == results
            assert [ready[f"{name}.{index}"] for index in range(ITEMS)] == results
            (form,) = [call for call in calls if call["output"] == name]
            children = [call["output"] for call in calls if call["parent"] == form["id"]]
            assert sorted(children) == [f"{name}.{index}" for index in range(ITEMS)]


def tool_graph(number: int) -> dict[str, Any]:
    """Return an agent, and a map of a tool. Both count their runs of a tool that is not idempotent."""
    messages = [{"role": "user", "content": f"agent {number}"}]
    agent = {"model": "fake", "messages": messages, "tools": ["t/count"], "max_turns": TURNS + 1}
    run = {"server": "t", "name": "count", "arguments": {"seconds": 0.03, "label": f"map{number}.<<index>>"}}
    names = [f"answer{number}", f"counts{number}"]
    return {
        "session": "s",
        "variables": {f"keep_{name}": {"template": f"<<{name}>>"} for name in names},
        "calls": [
            {"agent": agent, "output": names[0]},
            {"map": {"over": list(range(ITEMS)), "call": {"tool": run}, "on_error": "null"}, "output": names[1]},
        ],
    }


async def begin_tool_graph(http: aiohttp.ClientSession, address: str, number: int) -> None:
    """Submit the graph of this number, and wait until it runs."""
    async with http.post(f"{address}/v1/graphs", json={**tool_graph(number), "stream": True}) as response:
        assert response.status == 200, await response.text()
        await response.content.readline()


async def test_no_tool_runs_twice_while_the_gateway_is_killed(tmp_path: Path) -> None:
    random = Random(11)
    counter = tmp_path / "count"
    counter.touch()
    tools = tmp_path / "tools.json"
    command = [sys.executable, str(Path(tool_server.__file__))]
    server_table = {"command": command, "env": {"COUNTER": str(counter)}, "tools": ["count"]}
    tools.write_text(json.dumps({"servers": {"t": server_table}}))
    graphs = inside = 0
    async with ScriptedServer() as upstream, aiohttp.ClientSession() as http:
        upstream.always = answer
        arguments = (
            "--engine",
            f"openai={upstream.url}",
            "--journal",
            str(tmp_path / "j"),
            "--tool-servers",
            str(tools),
        )
        for number in range(KILLS + 1):
            server = await asyncio.to_thread(GatewayHarness, *arguments)
            try:
                session = f"{server.address}/v1/sessions/s"
                if not number:
                    async with http.post(f"{server.address}/v1/sessions", json={"id": "s"}) as response:
                        assert response.status == 201
                if number == KILLS:  # a last graph, which no kill interrupts
                    await begin_tool_graph(http, server.address, graphs)
                    graphs += 1
                    async with asyncio.timeout(60):
                        while unfinished(await variables_of(http, session)):
                            await asyncio.sleep(0.1)
                    variables = {variable["name"]: variable for variable in await variables_of(http, session)}
                    break
                # steps of tools, and not seconds: a slow machine would interrupt every agent
                steps = len(counter.read_text().splitlines()) + random.randint(0, 8)
                async with asyncio.timeout(60):
                    while True:
                        if len(unfinished(await variables_of(http, session))) < 4:
                            await begin_tool_graph(http, server.address, graphs)
                            graphs += 1
                        if len(counter.read_text().splitlines()) >= steps:
                            break
                        await asyncio.sleep(0.01)
                await asyncio.sleep(random.uniform(0.0, 0.05))  # to a moment inside the next step
                inside += bool(unfinished(await variables_of(http, session)))
            finally:
                server.process.kill()
                await asyncio.to_thread(server.stop)
    assert inside > KILLS // 2, "most kills were in the middle of forms"
    runs = Counter(line.split(" ", 1)[1] for line in counter.read_text().splitlines() if line.startswith("begin"))
    assert set(runs.values()) == {1}, "a tool that is not idempotent ran twice"
    for number in range(graphs):
        answered = variables[f"answer{number}"]
        if answered["state"] == "ready":
            assert answered["value"] == "; ".join(f"counted agent{number}.{turn}" for turn in range(TURNS))
        else:
            assert "interrupted" in answered["error"]["message"], answered
        counts = json.loads(variables[f"counts{number}"]["value"])
        for index, count in enumerate(counts):
            assert count == f"counted map{number}.{index}" or count is None
            if count is None:
                error = variables[f"counts{number}.{index}"]["error"]
                assert error["code"] == "interrupted", error
    assert variables[f"answer{graphs - 1}"]["state"] == "ready", "the last graph ran without a kill"


async def variables_of(http: aiohttp.ClientSession, session: str) -> list[dict[str, Any]]:
    async with http.get(f"{session}/variables") as response:
        return list((await response.json())["data"])


def unfinished(variables: list[dict[str, Any]]) -> list[str]:
    """Return the names of variables that are not final."""
    final = ("ready", "failed", "cancelled", "skipped")
    return [variable["name"] for variable in variables if variable["state"] not in final]
