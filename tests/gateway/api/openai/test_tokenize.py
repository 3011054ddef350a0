"""gateway/api/openai/tokenize.py: tokens of texts and conversations, and texts of tokens."""

import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from engine.tokenizer import Tokenizer
from tests.fakes.checkpoints import VOCABULARY, write_byte_tokenizer
from tests.fakes.in_process_gateway import GatewayClient, ScriptedGateway, gateway_before
from tests.fakes.scripted_server import ScriptedServer


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[GatewayClient]:
    """Yield a client of a gateway whose server receives tokens: one for each byte."""
    write_byte_tokenizer(tmp_path)
    async with ScriptedServer() as server, gateway_before(server, Tokenizer(tmp_path), "vllm") as (client, _):
        yield client


async def send(client: GatewayClient, path: str, **body: Any) -> tuple[int, Any]:
    content = io.BytesIO(json.dumps({"model": "fake", **body}).encode())
    async with client.post(path, data=content) as answer:
        return answer.status, await answer.json()


@pytest.mark.parametrize("prefix", ["", "/v1"])
@pytest.mark.parametrize("text", ["", "abc", "é\n", "x" * 10_000])
async def test_a_text_and_back(client: GatewayClient, prefix: str, text: str) -> None:
    status, told = await send(client, f"{prefix}/tokenize", prompt=text, add_special_tokens=False)
    assert status == 200
    assert told["count"] == len(told["tokens"]) == len(text.encode())
    assert told["max_model_len"] == 4096, "the text may exceed the window"
    assert await send(client, f"{prefix}/detokenize", tokens=told["tokens"]) == (200, {"prompt": text})


async def test_texts_of_single_tokens(client: GatewayClient) -> None:
    _, told = await send(client, "/tokenize", prompt="aé", add_special_tokens=False, return_token_strs=True)
    assert told["token_strs"] == ["a", "\ufffd", "\ufffd"]
    _, without = await send(client, "/tokenize", prompt="aé")
    assert "token_strs" not in without


async def test_a_conversation_has_the_tokens_of_its_prompt(client: GatewayClient) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
    texts = {}
    for options in ({}, {"add_generation_prompt": False}, {"continue_final_message": True}):
        _, told = await send(client, "/tokenize", messages=messages, **options)
        _, back = await send(client, "/detokenize", tokens=told["tokens"])
        texts[tuple(options)] = back["prompt"]
    assert texts["add_generation_prompt",] == "<s>[user]Hi</s>[assistant]Yo</s>"
    assert texts["continue_final_message",].endswith("Yo")


@pytest.mark.parametrize("tokens", [[-1], [VOCABULARY], [10**9], [0, 70_000]])
async def test_tokens_that_the_model_lacks_are_refused(client: GatewayClient, tokens: list[int]) -> None:
    status, answer = await send(client, "/detokenize", tokens=tokens)
    assert (status, answer["error"]["param"].split(".")[0]) == (400, "tokens")


async def test_sizes_are_limited(client: GatewayClient) -> None:
    for fields in ({"prompt": "x" * 1_000_001}, {"prompt": "é" * 500_001}):
        status, answer = await send(client, "/tokenize", **fields)
        assert (status, answer["error"]["code"], answer["error"]["param"]) == (400, "string_above_max_length", "prompt")
    parts = [{"role": "user", "content": "x" * 400_000}] * 3
    status, answer = await send(client, "/tokenize", messages=parts)
    assert (status, answer["error"]["param"]) == (400, "messages")
    status, answer = await send(client, "/detokenize", tokens=[1] * 1_000_001)
    assert (status, answer["error"]["param"]) == (400, "tokens")


async def test_a_model_that_receives_messages_has_no_tokens_here(scripted_gateway: ScriptedGateway) -> None:
    client, _, _ = scripted_gateway
    for path, fields in (("/tokenize", {"prompt": "x"}), ("/detokenize", {"tokens": [1]})):
        status, answer = await send(client, path, **fields)
        assert (status, answer["error"]["code"], answer["error"]["param"]) == (400, "unsupported_by_engine", "model")


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": "x", "reasoning_content": "x" * 1_000_001},
        {
            "role": "assistant",
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "x" * 1_000_001}}],
        },
    ],
)
async def test_all_texts_of_a_message_are_limited(client: GatewayClient, message: Any) -> None:
    status, told = await send(client, "/tokenize", messages=[message])
    assert (status, told["error"]["code"]) == (400, "string_above_max_length")
