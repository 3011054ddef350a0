"""gateway/api/health.py: whether the process lives, and whether it accepts work."""

import asyncio
import re

from gateway.api.services import SERVICES
from tests.fakes.in_process_gateway import GatewayClient, ScriptedGateway
from tests.fakes.scripted_server import hangs


async def state(client: GatewayClient, path: str = "/health/ready") -> tuple[int, str]:
    async with client.get(path) as answer:
        return answer.status, (await answer.json())["status"]


async def test_a_gateway_with_an_engine_is_ready(scripted_gateway: ScriptedGateway) -> None:
    client, _, _ = scripted_gateway
    assert await state(client) == (200, "ready")
    assert await state(client, "/health") == (200, "ok")


async def test_it_is_not_ready_while_its_engine_is_lost(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    await server.stop()
    body = {"model": "fake", "messages": [{"role": "user", "content": "x"}]}
    async with client.post("/v1/chat/completions", json=body) as answer:
        assert answer.status == 503
    assert await state(client) == (503, "starting")
    assert await state(client, "/health") == (200, "ok"), "the process lives"
    await server.start()
    async with asyncio.timeout(30):
        while await state(client) != (200, "ready"):
            await asyncio.sleep(0.05)


async def test_it_says_that_it_stops(scripted_gateway: ScriptedGateway) -> None:
    client, _, _ = scripted_gateway
    client.app[SERVICES].scheduler.stop_admitting()
    assert await state(client) == (503, "stopping")
    assert await state(client, "/health") == (200, "ok")


async def test_metrics_count_unfinished_calls(scripted_gateway: ScriptedGateway) -> None:
    client, server, unfinished = scripted_gateway

    async def counted() -> str:
        async with client.get("/metrics") as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=")
            found = re.search(r"^myna_calls_unfinished (\S+)$", await answer.text(), re.MULTILINE)
        assert found is not None
        return found[1]

    assert await counted() == "0.0"
    server.script = [hangs()]
    body = {"model": "fake", "messages": [{"role": "user", "content": "x"}]}
    running = asyncio.create_task(client.post("/v1/chat/completions", json=body))
    async with asyncio.timeout(10):
        while not unfinished():
            await asyncio.sleep(0.01)
    assert await counted() == "1.0"
    running.cancel()
