"""Virtual keys through `myna serve`: restarts, disconnects, and two gateways that share limits while one is killed."""

import asyncio
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.fakes.gateway_harness import GatewayHarness
from tests.fakes.postgres_server import PostgresServer
from tests.fakes.scripted_server import ScriptedServer

pytestmark = pytest.mark.waits

ADMIN_KEY = "admin-key-of-the-tests"
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


class Upstream(ScriptedServer):
    """An upstream server that counts its requests in progress, and can hold them."""

    def __init__(self) -> None:
        super().__init__()
        self.running = 0
        self.most = 0
        self.answered = 0
        self.released = asyncio.Event()
        self.released.set()
        self.always = self._count

    async def _count(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.released.wait()
            await asyncio.sleep(0.01)
        finally:
            self.running -= 1
        self.answered += 1
        choice = {"message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
        return web.json_response({"model": "fake", "choices": [choice], "usage": USAGE})


class Client:
    """An HTTP client of several gateways."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self.http = http

    async def send(
        self, gateway: GatewayHarness, method: str, path: str, key: str, body: Any = None
    ) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {key}"}
        async with self.http.request(
            method, f"{gateway.address}/v1{path}", json=body, headers=headers, timeout=aiohttp.ClientTimeout(60)
        ) as answer:
            return answer.status, await answer.json()

    async def make_key(self, gateway: GatewayHarness, **fields: Any) -> tuple[str, str]:
        status, made = await self.send(gateway, "POST", "/admin/keys", ADMIN_KEY, fields)
        assert status == 201, made
        return made["id"], made["key"]

    async def chat(self, gateway: GatewayHarness, key: str) -> int:
        """Send a request, and return the status; 0 if the connection breaks."""
        body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
        with suppress(aiohttp.ClientError):
            return (await self.send(gateway, "POST", "/chat/completions", key, body))[0]
        return 0


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream() as server:
        yield server


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        yield Client(http)


async def start(upstream: Upstream, journal: str, *options: str) -> GatewayHarness:
    arguments = ("--engine", f"openai={upstream.url}", "--admin-key", ADMIN_KEY, "--journal", journal, *options)
    return await asyncio.to_thread(GatewayHarness, *arguments)


async def test_keys_survive_a_kill(upstream: Upstream, client: Client, tmp_path: Path) -> None:
    journal = str(tmp_path / "journal")
    first = await start(upstream, journal)
    id, key = await client.make_key(first, name="a", rpm=1_000, budget_tokens=1_000)
    assert await client.chat(first, key) == 200
    await client.send(first, "POST", "/sessions", key, {"id": "run"})
    await asyncio.to_thread(first.stop, signal.SIGKILL)
    second = await start(upstream, journal)
    try:
        assert await client.chat(second, key) == 200
        assert (await client.send(second, "GET", "/sessions/run", key))[0] == 200
        status, described = await client.send(second, "GET", f"/admin/keys/{id}", ADMIN_KEY)
        assert (status, described["name"], described["rpm"]) == (200, "a", 1_000)
        assert key not in "".join(second.log)
    finally:
        await asyncio.to_thread(second.stop)


async def test_a_client_that_disconnects_while_it_waits_frees_its_place(upstream: Upstream, client: Client) -> None:
    gateway = await start(upstream, "memory", "--over-limit", "wait", "--over-limit-wait", "60")
    try:
        _, key = await client.make_key(gateway, parallel=1)
        upstream.released.clear()
        first = asyncio.create_task(client.chat(gateway, key))
        while not upstream.running:
            await asyncio.sleep(0.01)
        waiting = [asyncio.create_task(client.chat(gateway, key)) for _ in range(20)]
        last = asyncio.create_task(client.chat(gateway, key))
        await asyncio.sleep(0.2)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        upstream.released.set()
        assert await last == 200
        assert upstream.most == 1
        assert len(upstream.asked) < 10, "the gateway notices most disconnects before the place is free"
    finally:
        await asyncio.to_thread(gateway.stop)


@pytest.fixture
async def pair(upstream: Upstream, postgres: PostgresServer) -> AsyncIterator[list[GatewayHarness]]:
    """Yield two gateways on one database."""
    journal = postgres.database()
    options = ("--lease", "2")
    gateways = list(await asyncio.gather(*(start(upstream, journal, *options) for _ in range(2))))
    try:
        yield gateways
    finally:
        for gateway in gateways:
            await asyncio.to_thread(gateway.stop, signal.SIGKILL)


async def until(condition: Any) -> None:
    """Wait until an async function returns true."""
    while not await condition():
        await asyncio.sleep(0.05)


async def test_two_gateways_share_places_also_after_one_is_killed(
    upstream: Upstream, client: Client, pair: list[GatewayHarness]
) -> None:
    first, second = pair
    id, key = await client.make_key(first, parallel=4, budget_tokens=1_000_000)

    async def both_know_it() -> bool:
        return await client.chat(second, key) == 200

    await until(both_know_it)
    upstream.most = 0
    statuses = await asyncio.gather(*(client.chat(pair[number % 2], key) for number in range(100)))
    assert set(statuses) <= {200, 429}
    assert 200 in statuses
    assert upstream.most <= 4
    upstream.released.clear()
    held: list[asyncio.Task[int]] = []

    async def first_holds_all() -> bool:
        while len(held) < 50 and upstream.running < 4:
            held.append(asyncio.create_task(client.chat(first, key)))
            await asyncio.sleep(0.1)
        return upstream.running == 4

    await until(first_holds_all)
    await asyncio.to_thread(first.stop, signal.SIGKILL)
    await asyncio.gather(*held)
    upstream.released.set()

    async def all_places_are_free() -> bool:
        await asyncio.sleep(0.3)
        return await asyncio.gather(*(client.chat(second, key) for _ in range(4))) == [200] * 4

    await until(all_places_are_free)

    async def nothing_is_reserved() -> bool:
        _, described = await client.send(second, "GET", f"/admin/keys/{id}", ADMIN_KEY)
        return bool(described["usage"]["reserved_tokens"] == 0)

    await until(nothing_is_reserved)
    assert upstream.most <= 4


async def test_two_gateways_share_a_budget(upstream: Upstream, client: Client, pair: list[GatewayHarness]) -> None:
    first, second = pair
    id, key = await client.make_key(first, budget_tokens=600)

    async def both_know_it() -> bool:
        return await client.chat(second, key) == 200

    await until(both_know_it)
    results: list[int] = []

    async def is_used_up() -> bool:
        results.extend(await asyncio.gather(*(client.chat(pair[number % 2], key) for number in range(20))))
        return upstream.answered >= 60 and results[-20:] == [429] * 20

    await until(is_used_up)
    assert set(results) == {200, 429}
    tokens = USAGE["total_tokens"]
    assert 600 <= upstream.answered * tokens <= 600 + 2 * tokens

    async def all_use_is_known() -> bool:
        _, described = await client.send(second, "GET", f"/admin/keys/{id}", ADMIN_KEY)
        await client.chat(second, key)
        return bool(described["usage"]["tokens"] == upstream.answered * tokens)

    await until(all_use_is_known)


async def test_a_key_that_is_deleted_on_one_gateway_ends_on_the_other(
    upstream: Upstream, client: Client, pair: list[GatewayHarness]
) -> None:
    first, second = pair
    id, key = await client.make_key(first)

    async def status_is(expected: int) -> bool:
        return await client.chat(second, key) == expected

    await until(lambda: status_is(200))
    status, session = await client.send(second, "POST", "/sessions", key, {"id": "run"})
    assert status == 201, session
    upstream.released.clear()
    running = asyncio.create_task(client.chat(second, key))
    while not upstream.running:
        await asyncio.sleep(0.01)
    deleted: Mapping[str, Any]
    status, deleted = await client.send(first, "DELETE", f"/admin/keys/{id}", ADMIN_KEY)
    assert (status, deleted["deleted"]) == (200, True)
    assert await running == 409, "what runs on the other gateway is cancelled too"
    upstream.released.set()
    await until(lambda: status_is(401))
