"""Engines on a Ray cluster of several nodes on this machine: placement, reconnection, replacement after a node's loss."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest

from tests.fakes.checkpoints import write_tiny_llama
from tests.fakes.gateway_harness import GatewayHarness

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.quiet]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def arguments(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    folder = tmp_path_factory.mktemp("ray")
    tiny = write_tiny_llama(folder / "tiny", window=1024)
    config = folder / "myna.toml"
    config.write_text(f'[[engine]]\nkind = "ray"\nurl = "{cluster.address}"\nlinger = 20\n')
    return ("--config", str(config), "--model", str(tiny), "--kv-tokens", "4096")


@pytest.fixture
async def http(request: pytest.FixtureRequest) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


class RayClient:
    """A client of one session."""

    def __init__(self, http: aiohttp.ClientSession, server: GatewayHarness, session: str) -> None:
        self._http, self._url, self._session = http, f"{server.address}/v1", session

    async def ask(self, content: str, **semantic: Any) -> str:
        body: dict[str, Any] = {
            "model": "tiny",
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 60,
            "temperature": 0,
            "ignore_eos": True,
        }
        headers = {}
        if semantic:
            body["semantic"], headers = semantic, {"X-Semantic-Session": self._session}
        async with self._http.post(f"{self._url}/chat/completions", json=body, headers=headers) as response:
            answer = await response.json()
            assert response.status == 200, answer
        return str(answer["choices"][0]["message"]["content"])

    async def value(self, name: str) -> Any:
        async with self._http.get(f"{self._url}/sessions/{self._session}/variables/{name}?wait=true") as response:
            variable = await response.json()
        assert variable.get("state") == "ready", variable
        return variable["value"]

    async def engines(self) -> set[str]:
        """Return the engines that ran the session's calls."""
        async with self._http.get(f"{self._url}/sessions/{self._session}/graph") as response:
            return {call["engine"] for call in (await response.json())["calls"] if call["engine"]}


def actors(cluster: Any) -> dict[str, int]:
    """Return the names of the running actors, with their process ids."""
    if not ray.is_initialized():
        ray.init(cluster.address, namespace="myna", log_to_driver=False)
    return {name: ray.get(ray.get_actor(name).pid.remote(), timeout=60) for name in ray.util.list_named_actors()}


async def test_a_restarted_gateway_reconnects_to_its_engines(
    cluster: Any, arguments: tuple[str, ...], http: aiohttp.ClientSession
) -> None:
    answers, there = [], []
    for _ in range(2):
        server = await asyncio.to_thread(GatewayHarness, *arguments)
        assert "on 2 engines, each cpu with 1 threads" in server.started
        answers.append(await RayClient(http, server, "s").ask("say something"))
        there.append(await asyncio.to_thread(actors, cluster))
        assert await asyncio.to_thread(server.stop) == 0
    assert answers[0] == answers[1]
    assert there[0] == there[1]
    assert len(there[0]) == 2
    async with asyncio.timeout(60):  # no gateway is connected to them
        while await asyncio.to_thread(ray.util.list_named_actors):
            await asyncio.sleep(0.5)


async def test_another_node_takes_over_the_work_of_a_dead_one(
    cluster: Any, arguments: tuple[str, ...], http: aiohttp.ClientSession
) -> None:
    server = await asyncio.to_thread(GatewayHarness, *arguments)
    try:
        client = RayClient(http, server, "s")
        alone = [await client.ask(f"number {index}") for index in range(4)]
        for index in range(4):
            await client.ask(f"number {index}", output=f"part{index}", defer=True)
        await client.ask("both: <<part0>> <<part3>>", output="both", defer=True)
        waits = [asyncio.create_task(client.value(f"part{index}")) for index in range(4)]
        await asyncio.sleep(0.1)
        await asyncio.to_thread(cluster.remove_node, next(iter(cluster.worker_nodes)), False)
        assert await asyncio.gather(*waits) == alone
        assert len(await client.value("both")) > 0
        async with asyncio.timeout(60):
            while not any(re.search(r"engine ray-\d ended|lost its engine", line) for line in server.log):
                await asyncio.sleep(0.1)

        cluster.add_node(num_cpus=1)  # it sets a signal handler, which only the main thread can do
        later = RayClient(http, server, "later")
        async with asyncio.timeout(120):  # the second engine starts on the new node
            for round_ in range(10_000):
                await asyncio.gather(
                    *(later.ask(f"{round_} {number}", output=f"v{round_}_{number}") for number in range(2))
                )
                if len(await later.engines()) == 2:
                    break
        assert await later.ask("number 0") == alone[0]
    finally:
        await asyncio.to_thread(server.stop)
