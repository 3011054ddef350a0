"""POST /v1/messages/count_tokens: exact where the tokens are known, otherwise an estimate."""

from pathlib import Path
from typing import Any

from anthropic.types import MessageTokensCount

from engine.tokenizer import Tokenizer
from tests.fakes.checkpoints import write_byte_tokenizer
from tests.fakes.in_process_gateway import GatewayClient, ScriptedGateway, gateway_before
from tests.fakes.scripted_server import ScriptedServer
from tests.gateway.api.anthropic.messages_client import ASKED, ask, send
from tests.gateway.api.anthropic.test_messages import TOOL


async def count(client: GatewayClient, **body: Any) -> int:
    status, told = await send(client, "/v1/messages/count_tokens", **body)
    assert status == 200, told
    return MessageTokensCount.model_validate(told).input_tokens


async def test_the_count_is_that_of_the_prompt(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    async with ScriptedServer() as server, gateway_before(server, Tokenizer(tmp_path), "vllm") as (client, _):
        requests: list[dict[str, Any]] = [
            {},
            {"system": "Be short."},
            {"tools": [TOOL]},
            {"messages": [*ASKED, {"role": "assistant", "content": "It"}]},
            {"model": "claude-sonnet-4-5", "thinking": {"type": "disabled"}},
        ]
        for fields in requests:
            await ask(client, **fields)
            assert await count(client, **fields) == len(server.asked[-1]["prompt"])
        long = [{"role": "user", "content": "x" * 10_000}]
        assert 10_000 < await count(client, messages=long) < 10_100, "more than the window of 4096"
        status, told = await send(client, messages=long)
        assert (status, told["error"]["message"]) == (400, "prompt is too long: 10008 tokens > 4096 maximum")


async def test_an_upstream_server_counts_only_its_own_way(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    text = "The quick brown fox. " * 100
    assert 500 < await count(client, messages=[{"role": "user", "content": text}]) < 900
    assert await count(client, tools=[TOOL]) > await count(client)
    assert server.asked == []


async def test_a_text_that_is_too_long_is_refused(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    async with ScriptedServer() as server, gateway_before(server, Tokenizer(tmp_path), "vllm") as (client, _):
        long = "x" * 1_000_001
        call = {"type": "tool_use", "id": "c", "name": "f", "input": {"a": long}}
        bodies: list[dict[str, Any]] = [
            {"messages": [{"role": "user", "content": long}]},
            {"messages": [*ASKED, {"role": "assistant", "content": [call]}, *ASKED]},
            {"tools": [{**TOOL, "description": long}]},
            {"system": long},
        ]
        for body in bodies:
            status, told = await send(client, "/v1/messages/count_tokens", **body)
            assert (status, told["error"]["details"]["error_code"]) == (400, "string_above_max_length")
        status, told = await send(client, "/v1/messages/count_tokens", max_tokens=5)
        assert (status, told["error"]["details"]["param"]) == (400, "max_tokens")
