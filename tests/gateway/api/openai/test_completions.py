"""gateway/api/openai/completions.py: prompts of a completion become calls."""

from pathlib import Path
from typing import Any

import pytest

from engine.tokenizer import Tokenizer
from tests.fakes.checkpoints import write_byte_tokenizer
from tests.fakes.in_process_gateway import GatewayClient, ScriptedGateway, gateway_before
from tests.fakes.scripted_server import ScriptedServer, refuses, says


async def complete(client: GatewayClient, **body: Any) -> tuple[int, Any]:
    async with client.post("/v1/completions", json={"model": "fake", **body}) as answer:
        return answer.status, await answer.json()


async def test_each_prompt_is_a_call_and_answers_keep_their_order(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    status, answer = await complete(client, prompt=["one", "two"], n=2)
    assert status == 200
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert sorted(asked["prompt"] for asked in server.asked) == ["one", "one", "two", "two"]
    assert set(server.paths) == {"/v1/completions"}


async def test_a_failure_of_one_prompt_fails_the_completion(scripted_gateway: ScriptedGateway) -> None:
    client, server, unfinished = scripted_gateway
    server.script = [says("x"), refuses(400, "not so")]
    status, answer = await complete(client, prompt=["one", "two"])
    assert (status, answer["error"]["code"]) == (400, "engine_refused")
    assert unfinished() == 0


async def test_defaults_of_several_prompts(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    for name in "ab":
        calls = [{"model": "fake", "messages": [{"role": "user", "content": "x"}], "semantic": {"output": name}}]
        graph = {"session": "s", "calls": [{"if": {"value": "x", "equals": "y"}, "then": calls}], "outputs": [name]}
        await client.post("/v1/sessions", json={"id": "s"})
        assert (await client.post("/v1/graphs", json=graph)).status == 200
    extension = {"session": "s", "defaults": {"a": "1", "b": "2"}}
    status, _ = await complete(client, prompt=["is <<a>>", "is <<b>>", "is"], semantic=extension)
    assert status == 200
    assert sorted(asked["prompt"] for asked in server.asked) == ["is", "is 1", "is 2"]
    status, answer = await complete(client, prompt=["is <<a>>", "is"], semantic=extension)
    assert (status, answer["error"]["param"]) == (400, "semantic.defaults.b")


async def test_prompts_of_tokens_are_sent_as_tokens(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    tokenizer = Tokenizer(tmp_path)
    async with ScriptedServer() as server, gateway_before(server, tokenizer, "vllm") as (client, _):
        assert (await complete(client, prompt=tokenizer.encode("Hi")))[0] == 200
        assert (await complete(client, prompt=[tokenizer.encode("a"), tokenizer.encode("b")]))[0] == 200
        first, *_ = server.asked
        assert first["prompt"][-2:] == tokenizer.encode("Hi")
        status, refused = await complete(client, prompt=[70_000])
        assert (status, refused["error"]["code"]) == (400, "invalid_value")
        assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [""] * 2_000, "n": 100}, None),
        ({"prompt": "x", "n": 0}, "n"),
        ({"prompt": "x", "best_of": 1, "n": 2}, "best_of"),
        ({"prompt": "x", "model": "other"}, "model"),
        ({"prompt": "x", "suffix": "y"}, "suffix"),
    ],
)
async def test_invalid_completions_are_refused(
    scripted_gateway: ScriptedGateway, fields: dict[str, Any], param: str | None
) -> None:
    client, server, unfinished = scripted_gateway
    status, refused = await complete(client, **fields)
    assert status in (400, 404)
    assert param is None or refused["error"]["param"] == param
    assert (server.asked, unfinished()) == ([], 0)
