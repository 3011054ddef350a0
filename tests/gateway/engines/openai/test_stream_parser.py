"""gateway/engines/openai/stream_parser.py: answers in pieces, broken ones included."""

import asyncio
import json
from typing import Any

import pytest

from gateway.engines.openai import Upstream
from gateway.engines.openai.stream_parser import SseParser
from gateway.engines.protocol import (
    ContextRefused,
    EngineLost,
    TokenCounts,
    TokenDelta,
)
from tests.fakes.scripted_server import ScriptedServer, breaks_off, chunk, says, sends, stream
from tests.gateway.engines.generation import text
from tests.gateway.engines.openai.upstream_requests import ask, connected


async def test_a_stream_that_breaks_off(server: ScriptedServer, upstream: Upstream) -> None:
    server.script = [breaks_off("some", " of")]
    with pytest.raises(EngineLost, match="broke the connection"):
        await ask(upstream)

    async def ends_early(request: Any, body: dict[str, Any]) -> Any:
        return await stream(request, [chunk(body, "some")])  # the HTTP response is complete

    server.script = [ends_early]
    with pytest.raises(EngineLost, match="in the middle of an answer"):
        await ask(upstream)


@pytest.mark.parametrize(
    "content", [b"data: {oh\n\n", b'data: {"choices": 5}\n\n', b"data: \xff\xfe\n\n", b"data: [1]\n\n"]
)
async def test_invalid_json(server: ScriptedServer, upstream: Upstream, content: bytes) -> None:
    server.script = [sends(content)]
    with pytest.raises(EngineLost, match="sent an invalid answer"):
        await ask(upstream)
    server.script = [sends(b"<html>sorry</html>", "text/html")]
    with pytest.raises(EngineLost, match="sent an invalid answer"):
        await ask(upstream)


async def test_an_error_within_a_stream(server: ScriptedServer, upstream: Upstream) -> None:
    server.script = [sends(b'data: {"error": {"message": "out of memory", "code": 500}}\n\n')]
    with pytest.raises(EngineLost, match="out of memory"):
        await ask(upstream)
    server.script = [sends(b'data: {"error": {"message": "bad schema", "code": 400}}\n\n')]
    with pytest.raises(ContextRefused, match="bad schema") as refusal:
        await ask(upstream)
    assert refusal.value.code == "engine_refused"
    long = "The input (9000 tokens) is longer than the model's context length (8192 tokens)."
    server.script = [sends(b'data: {"error": {"message": "%s", "code": 400}}\n\n' % long.encode())]
    with pytest.raises(ContextRefused, match="longer than") as refusal:
        await ask(upstream)
    assert refusal.value.code == "context_length_exceeded"


async def test_a_server_that_does_not_stream(server: ScriptedServer, upstream: Upstream) -> None:
    answer = {
        "choices": [{"message": {"role": "assistant", "content": "all at once"}, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}},
    }
    server.script = [sends(json.dumps(answer).encode(), "application/json")]
    events = await ask(upstream)
    assert text(events) == "all at once"
    assert events[-1] == TokenCounts(3, 2, 3)


@pytest.mark.parametrize(
    "content",
    [
        b'data: {"choices": [{"text": "a", "token_ids": [4000000000]}]}\n\n',
        b'data: {"choices": [{"text": "a", "token_ids": [-1]}]}\n\n',
        b'data: {"choices": [{"text": "a", "token_ids": [1e400]}]}\n\n',
        b'data: {"choices": [{"text": "\\ud800"}]}\n\n',
        b'data: {"usage": ' + b"[" * 100_000 + b"\n\n",
        b'data: {"error": ' + b"[" * 900 + b"]" * 900 + b"}\n\n",
        b'data: {"choices": [{"logprobs": {"content": [{"token": "a", "logprob": -1, "bytes": [999]}]}}]}\n\n',
        b"data: " + b"x" * (5 << 20),
    ],
    ids=range(8),
)
async def test_invalid_answers(server: ScriptedServer, upstream: Upstream, content: bytes) -> None:
    server.script = [sends(content)]
    with pytest.raises(EngineLost, match="sent an invalid answer"):
        await ask(upstream)


async def test_an_event_in_many_pieces_takes_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse an event that takes more than ten minutes if its data so far is copied for each piece: the test's time
    limit ends it. The limit on its size is raised, because copies of smaller events are too fast."""
    monkeypatch.setattr("gateway.engines.openai.stream_parser._LONGEST_EVENT", 100_000_000)
    events = SseParser()
    said = b'data: {"x": "' + b"y" * 60_000_000 + b'"}\r\n\r\n'
    found = [event for begin in range(0, len(said), 600) for event in events.feed(said[begin : begin + 600])]
    assert [len(event) for event in found] == [len(said) - 10]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_events_do_not_depend_on_the_packets(size: int) -> None:
    said = (
        b': hello\n\ndata: {"a": 1}\r\n\r\ndata: {"b": 2}\n\nevent: x\ndata: {"c": 3}\n\ndata: [DONE]\n\ndata: {}\n\n'
    )
    events = SseParser()
    found = [event for begin in range(0, len(said), size) for event in events.feed(said[begin : begin + size])]
    assert found == [b'{"a": 1}', b'{"b": 2}', b'{"c": 3}']


async def test_an_endless_answer(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never_ends(request: Any, body: dict[str, Any]) -> Any:
        response = await stream(request, [], done=False)
        while True:
            await response.write(b"data: " + json.dumps(chunk(body, "x" * 1_000)).encode() + b"\n\n")

    monkeypatch.setattr("gateway.engines.openai.stream_parser.LONGEST_ANSWER", 1_000_000)
    server.script = [never_ends]
    upstream = await connected(server)
    with pytest.raises(EngineLost, match="more than 1000000 bytes"):
        await ask(upstream)

    async def continues_after_its_end(request: Any, body: dict[str, Any]) -> Any:
        response = await stream(request, [chunk(body, "x", "stop")])
        while True:
            await response.write(b": there is more\n\n")
            await asyncio.sleep(0.01)

    monkeypatch.setattr("gateway.engines.openai.engine._TAIL_SECONDS", 0.2)
    server.script = [continues_after_its_end]
    async with asyncio.timeout(10):
        assert text(await ask(upstream)) == "x"
    await upstream.close()


async def test_an_unknown_finish_reason_becomes_stop(server: ScriptedServer, upstream: Upstream) -> None:
    for reason, told in (("length", "length"), ("content_filter", "content_filter"), ("x" * 1_000_000, "stop")):
        server.script = [says("a", finish=reason)]
        events = await ask(upstream)
        assert [event.finish for event in events if isinstance(event, TokenDelta) and event.finish] == [told]


@pytest.mark.parametrize(
    ("fields", "told"),
    [({"stop_reason": "END"}, "END"), ({"matched_stop": "END"}, "END"), ({"stop_reason": 128009}, None), ({}, None)],
    ids=["vLLM", "SGLang", "a stop token", "OpenAI"],
)
async def test_the_stop_string_that_ended_the_answer_is_reported(
    server: ScriptedServer, upstream: Upstream, fields: dict[str, Any], told: str | None
) -> None:
    async def stops(request: Any, body: dict[str, Any]) -> Any:
        return await stream(request, [chunk(body, "a"), chunk(body, None, "stop", **fields)])

    server.script = [stops]
    deltas = [event for event in await ask(upstream) if isinstance(event, TokenDelta)]
    assert [delta.stop_string for delta in deltas] == [None, told]


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": -5, "completion_tokens": 3},
        {"prompt_tokens": 10**12, "completion_tokens": 3},
        {"prompt_tokens": "many"},
        {"prompt_tokens": 5, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 6}},
        ["what"],
    ],
)
async def test_invalid_usage_is_ignored(server: ScriptedServer, upstream: Upstream, usage: Any) -> None:
    server.script = [says("a", "b", usage=usage)]
    events = await ask(upstream)
    assert text(events) == "ab"
    assert not any(isinstance(event, TokenCounts) for event in events)
