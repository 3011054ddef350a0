"""The ledger agrees with what the engines made, also with disconnects, retries, shared calls and kills.

MYNA_SPEND_CALLS sets the number of calls.
"""

import asyncio
import json
import os
import random
import signal
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.fakes.gateway_harness import GatewayHarness
from tests.fakes.in_process_gateway import gateway_before
from tests.fakes.scripted_server import ScriptedServer, chunk, stream

CALLS = int(os.environ.get("MYNA_SPEND_CALLS", "1500"))
PARALLEL = 32


class CountingServer(ScriptedServer):
    """An upstream server that does what the prompt says, and counts the tokens that it makes.

    A prompt is `TOKENS BREAKS HANGS`: the server breaks off the first BREAKS attempts after TOKENS tokens, or hangs
    after TOKENS tokens if HANGS is 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.always = self._serve
        self.made: Counter[str] = Counter()
        self._attempts: Counter[str] = Counter()

    async def _serve(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        name, tokens, breaks, hangs = body["messages"][-1]["content"].split()
        self._attempts[name] += 1
        is_broken = self._attempts[name] <= int(breaks)
        events = [chunk(body, "w ") for _ in range(int(tokens))]
        self.made["completion"] += len(events)
        if is_broken or hangs == "1":
            response = await stream(request, events, done=False)
            if is_broken:
                await asyncio.sleep(0.002)  # so that the gateway has read them
                assert request.transport is not None
                request.transport.close()
                return response
            await asyncio.sleep(60)
        self.made["prompt"] += 7
        usage = {"prompt_tokens": 7, "completion_tokens": len(events)}
        return await stream(request, [*events, chunk(body, None, "stop"), {"choices": [], "usage": usage}])


@pytest.mark.slow
async def test_the_ledger_has_exactly_the_tokens_that_were_made() -> None:
    """Send calls of every kind: whole, streamed, deferred, shared, retried, and with clients that disconnect."""
    chance = random.Random(11)
    async with (
        CountingServer() as server,
        gateway_before(server, ledger="on", max_calls=100_000) as (client, unfinished),
    ):
        kinds, statuses = Counter[str](), Counter[int]()

        async def send(number: int) -> None:
            tokens = chance.randrange(1, 20)
            kind = chance.choices(["whole", "streamed", "deferred", "shared", "left", "retried"], [4, 4, 4, 4, 4, 1])[0]
            kinds[kind] += 1
            breaks, hangs = int(kind == "retried"), int(kind == "left")
            content = f"{number} {tokens} {breaks} {hangs}"
            body: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": content}]}
            if kind in ("streamed", "left"):
                body["stream"] = True
            if kind in ("deferred", "shared"):
                body |= {"temperature": 0, "semantic": {"session": "s", "output": f"v{number}"}}
                body["semantic"]["defer"] = kind == "deferred"
            copies = [body]
            if kind == "shared":
                copies.append({**body, "semantic": {"session": "s", "output": f"w{number}"}})
            await asyncio.gather(*[post(copy, tokens if kind == "left" else None) for copy in copies])

        async def post(body: dict[str, Any], until: int | None) -> None:
            async with client.post("/v1/chat/completions", json=body) as answer:
                statuses[answer.status] += 1
                if until is None or answer.status != 200:
                    await answer.read()
                    return
                seen = 0
                async for line in answer.content:
                    seen += line.count(b"w ")  # a chunk may have several tokens
                    if seen >= until:
                        answer.close()
                        return

        async with client.post("/v1/sessions", json={"id": "s"}) as created:
            assert created.status == 201
        numbers = iter(range(CALLS))

        async def worker() -> None:
            for number in numbers:
                await send(number)

        await asyncio.gather(*[worker() for _ in range(PARALLEL)])
        while unfinished():
            await asyncio.sleep(0.01)
        async with client.get("/v1/usage") as answer:
            (total,) = (await answer.json())["data"]
    assert min(kinds.values()) > CALLS // 50
    assert statuses[200] > 0.9 * CALLS  # some find the server down, after several lost attempts in a row
    assert total["calls"] == CALLS + kinds["shared"]
    # the server reports no usage to clients that left: the gateway counts their prompts by itself
    assert total["completion_tokens"] + total["lost_tokens"] == server.made["completion"]
    assert total["lost_tokens"] > 0


@pytest.fixture
async def counting_server() -> AsyncIterator[CountingServer]:
    """Yield the upstream server of a gateway that is a process."""
    async with CountingServer() as server:
        yield server


@pytest.mark.slow  # with 10,000 calls it kills 50 gateways
async def test_answered_calls_have_one_row_after_kills(counting_server: CountingServer, tmp_path: Path) -> None:
    """Kill the gateway again and again. Each answer that a client has seen is in the ledger, once and exactly."""
    answered: dict[str, int] = {}
    kills = max(5, CALLS // 200)
    options = ("--engine", f"vllm={counting_server.url}", "--ledger", "on", "--journal", str(tmp_path / "journal"))
    for kill in range(kills):
        gateway = await asyncio.to_thread(GatewayHarness, *options)
        try:
            asyncio.get_running_loop().call_later(0.3, os.kill, gateway.process.pid, signal.SIGKILL)
            await asyncio.gather(*[_ask_until_killed(gateway, f"{kill}-{n}", answered) for n in range(8)])
        finally:
            await asyncio.to_thread(gateway.stop, signal.SIGKILL)
    gateway = await asyncio.to_thread(GatewayHarness, *options)  # reads the rows of the killed processes
    async with aiohttp.ClientSession() as http, http.get(f"{gateway.address}/v1/usage") as answer:
        (total,) = (await answer.json())["data"]
    await asyncio.to_thread(gateway.stop)
    with closing(sqlite3.connect(tmp_path / "journal.ledger.sqlite")) as database:
        rows = dict(database.execute("SELECT id, completion FROM spend").fetchall())
    assert len(answered) > kills
    assert {id: rows.get(id) for id in answered} == answered
    assert total["calls"] == len(rows)
    assert total["completion_tokens"] <= counting_server.made["completion"]


async def _ask_until_killed(gateway: GatewayHarness, name: str, answered: dict[str, int]) -> None:
    """Send calls of a session until the gateway is killed, and note the tokens of each answer by the call's id."""
    async with aiohttp.ClientSession() as http:
        number = 0
        while True:
            number += 1
            content = f"{name}-{number} {number % 7 + 1} 0 0"
            body = {"model": "fake", "messages": [{"role": "user", "content": content}], "stream": number % 2 == 0}
            headers = {"X-Semantic-Session": f"s-{name}-{number}"}
            body["stream_options"] = {"include_usage": True} if body["stream"] else None
            url = f"{gateway.address}/v1/chat/completions"
            try:
                async with http.post(url, json=body, headers=headers, timeout=aiohttp.ClientTimeout(20)) as answer:
                    text = await answer.text()
            except (aiohttp.ClientError, TimeoutError, OSError):
                return
            events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
            last = events[-1] if body["stream"] else json.loads(text)
            if not body["stream"] or text.endswith("[DONE]\n\n"):
                answered[last["semantic"]["call"]] = last["usage"]["completion_tokens"]
