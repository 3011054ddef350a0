"""Engines on other machines: the answers are the same, and the loss of an engine loses no call."""

import asyncio
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.fakes.checkpoints import write_tiny_llama
from tests.fakes.engine_harness import EngineHarness
from tests.fakes.gateway_harness import GatewayHarness

pytestmark = pytest.mark.waits

TOKEN = {"MYNA_ENGINE_TOKEN": EngineHarness.TOKEN}


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    folder = write_tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny", window=1024)
    return ("--model", str(folder), "--kv-tokens", "4096")


async def ask(http: aiohttp.ClientSession, content: str, session: str | None = None, **semantic: Any) -> Any:
    body: dict[str, Any] = {
        "model": "tiny",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 30,
        "temperature": 0,
        "ignore_eos": True,
    }
    if semantic:
        body["semantic"] = semantic
    headers = {"X-Semantic-Session": session} if session else {}
    async with http.post("/v1/chat/completions", json=body, headers=headers) as response:
        answer = await response.json()
        assert response.status == 200, answer
    return answer["choices"][0]["message"]["content"]


async def test_answers_and_graphs_are_those_of_an_embedded_engine(options: tuple[str, ...]) -> None:
    answers = []
    with EngineHarness(*options) as elsewhere:
        for chosen in (("--engine", f"myna={elsewhere.address}"), options):
            with GatewayHarness(*chosen, env=TOKEN) as server:
                async with aiohttp.ClientSession(server.address) as http:
                    plain = await ask(http, "say something")
                    await ask(http, "one two", "s", output="first", defer=True)
                    second = await ask(http, "behind: <<first>>", "s")
                    answers.append((plain, second))
                assert server.stop() == 0
        assert elsewhere.process.poll() is None, "the engine keeps running without its gateway"
    assert answers[0] == answers[1]


@pytest.mark.slow
async def test_another_engine_takes_over_the_work_of_a_lost_one(options: tuple[str, ...]) -> None:
    # one engine is killed in the middle of a graph, and the other runs the remaining calls
    first = EngineHarness(*options)
    with EngineHarness(*options) as second:
        chosen = [part for engine in (first, second) for part in ("--engine", f"myna={engine.address}")]
        with GatewayHarness(*chosen, env=TOKEN) as server:
            async with aiohttp.ClientSession(server.address) as http:
                alone = [await ask(http, f"number {index}") for index in range(6)]
                for index in range(6):
                    await ask(http, f"number {index}", "s", output=f"part{index}", defer=True)
                waits = [
                    asyncio.create_task(_value(http, f"/v1/sessions/s/variables/part{index}?wait=true"))
                    for index in range(6)
                ]
                await asyncio.sleep(0.05)
                await asyncio.to_thread(first.stop, signal.SIGKILL)
                assert await asyncio.gather(*waits) == alone
                assert await ask(http, "number 0") == alone[0]


async def _value(http: aiohttp.ClientSession, path: str) -> Any:
    async with http.get(path) as response:
        return (await response.json())["value"]


async def test_engines_of_different_models_serve_both(options: tuple[str, ...], tmp_path: Path) -> None:
    other = write_tiny_llama(tmp_path / "another")
    with EngineHarness(*options) as first, EngineHarness("--model", str(other), "--kv-tokens", "1024") as second:
        chosen = ("--engine", f"myna={first.address}", "--engine", f"myna={second.address}")
        with GatewayHarness(*chosen, env=TOKEN) as server:
            async with aiohttp.ClientSession(server.address) as http, http.get("/v1/models") as response:
                assert [model["id"] for model in (await response.json())["data"]] == ["tiny", "another"]


def test_the_error_names_an_unreachable_engine(options: tuple[str, ...]) -> None:
    with pytest.raises(RuntimeError, match=r"127\.0\.0\.1:1 cannot be reached"):
        GatewayHarness("--engine", "myna=tcp://127.0.0.1:1", "--engine-wait", "0.5", env=TOKEN)
