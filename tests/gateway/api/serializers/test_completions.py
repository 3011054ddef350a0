"""gateway/api/serializers/completions.py: echoed prompts, log probabilities, and the offsets of tokens."""

import json
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.api.serializers.completions import TextOffsets
from tests.fakes.in_process_gateway import GatewayClient, ScriptedGateway
from tests.fakes.scripted_server import says


@given(st.text(), st.integers(0, 100), st.data())
def test_offsets_are_positions_in_the_text(text: str, before: int, data: st.DataObject) -> None:
    encoded = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(encoded)))) | {0, len(encoded)})
    offsets = TextOffsets(before)
    for start, end in pairwise(cuts):
        complete = len(encoded[:start].decode(errors="ignore"))
        assert offsets.push(encoded[start:end]) == before + complete, "a part of a character has its position"


async def complete(client: GatewayClient, **body: Any) -> Any:
    async with client.post("/v1/completions", json={"model": "fake", **body}) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


async def chunks(client: GatewayClient, **body: Any) -> list[Any]:
    async with client.post("/v1/completions", json={"model": "fake", "stream": True, **body}) as answer:
        lines = (await answer.text()).splitlines()
    assert lines[-2] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]


async def test_each_answer_repeats_its_own_prompt(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.always = says("!")
    answer = await complete(client, prompt=["one", "two"], n=2, echo=True)
    assert [choice["text"] for choice in answer["choices"]] == ["one!", "one!", "two!", "two!"]
    streamed = await chunks(client, prompt=["one", "two"], echo=True)
    texts = {0: "", 1: ""}
    for chunk in streamed:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == {0: "one!", 1: "two!"}


async def test_whole_answers_and_chunks_have_the_same_shape(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.always = says("a", "b", finish="length")
    whole = await complete(client, prompt="x")
    assert (whole["object"], whole["choices"][0]["text"], whole["choices"][0]["finish_reason"]) == (
        "text_completion",
        "ab",
        "length",
    )
    streamed = await chunks(client, prompt="x", stream_options={"include_usage": True})
    assert {chunk["object"] for chunk in streamed} == {"text_completion"}
    assert len({chunk["id"] for chunk in streamed}) == 1
    assert "".join(chunk["choices"][0]["text"] for chunk in streamed[:-1]) == "ab"
    assert [chunk["choices"][0]["finish_reason"] for chunk in streamed[:-1]][-1] == "length"
    assert (streamed[-1]["choices"], streamed[-1]["usage"]) == ([], whole["usage"])
    assert all(chunk["usage"] is None for chunk in streamed[:-1])
