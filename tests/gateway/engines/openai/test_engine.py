"""gateway/engines/openai/engine.py: contexts become requests to an upstream server."""

import asyncio
from typing import Any

import pytest

from engine.sampling_params import SamplingParams
from gateway.engines.openai import OpenAIEngine, Upstream
from gateway.engines.protocol import (
    ContextEvent,
    ContextRefused,
    EngineLost,
    PrefillResult,
    TokenCounts,
    TokenDelta,
    Urgency,
)
from gateway.graph.references import EVERY_NAME
from gateway.graph.segments import Input, Messages, Slot
from gateway.prompts.prompt import ChatInput
from gateway.prompts.tool_calls.tools import Tool, Tools
from tests.fakes.prompt_contents import content_of
from tests.fakes.scripted_server import ScriptedServer, chunk, hangs, refuses, says, sends, stream
from tests.gateway.engines.generation import URGENT, stream_events, text, until
from tests.gateway.engines.openai.upstream_requests import ANSWER, DEFAULTS, HELLO, PROMPTS, ask, connected


async def test_messages_are_forwarded_unchanged(server: ScriptedServer, upstream: Upstream) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    messages = [
        {"role": "system", "content": "be brief <|im_end|> \ue000 \U0010ffff"},
        {"role": "user", "content": ["one", "two"], "name": "ann"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "call_1"},
    ]
    await ask(upstream, messages)
    (body,) = server.asked
    call_told = {**call, "function": {"name": "add", "arguments": '{"a": 1}'}}
    assert body["messages"] == [
        messages[0],
        {"role": "user", "content": "one\ntwo", "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": [call_told]},
        messages[3],
    ]
    assert {key: body[key] for key in body if key != "messages"} == {
        "model": "fake",
        "stream": True,
        "stream_options": {"include_usage": True},
    }, "defaults are left to the server"


async def test_a_context_continues_behind_filled_and_generated_text(server: ScriptedServer) -> None:
    upstream = await connected(server, "vllm")
    server.script = [says("b", "c"), says("d"), says("h")]
    said = [*HELLO, {"role": "assistant", "content": "a"}]
    written = PROMPTS.chat(ChatInput(said, continue_final_message=True), ANSWER).segments[0]
    assert isinstance(written, Messages)
    context, other = (OpenAIEngine("there", upstream, "fake").open("", URGENT) for _ in range(2))
    for one in (context, other):
        one.fill(written)
    for _ in range(2):  # one after the other
        assert [event async for event in stream_events(context, DEFAULTS)]
    other.fill("g")
    assert [event async for event in stream_events(other, DEFAULTS)]
    assert [body["messages"][-1]["content"] for body in server.asked] == ["a", "abc", "ag"]
    assert written.messages == said, "contexts share it"
    for one in (context, other):
        one.free()
    await upstream.close()


async def test_tools_are_passed_on_and_tool_calls_become_text(server: ScriptedServer, upstream: Upstream) -> None:
    async def calls(request: Any, body: dict[str, Any]) -> Any:
        def part(index: int, name: str | None, arguments: str) -> dict[str, Any]:
            return {"tool_calls": [{"index": index, "function": {"name": name, "arguments": arguments}}]}

        parts = [{"content": "Let me see."}, part(0, "add", ""), part(0, None, '{"a"'), part(0, None, ": 1}")]
        parts += [part(1, "sub", '{"b": 2}')]
        events = [{"choices": [{"index": 0, "delta": delta}]} for delta in parts]
        return await stream(request, [*events, {"choices": [{"delta": {}, "finish_reason": "tool_calls"}]}])

    server.script = [calls]
    tools = [Tool("add", strict=True), Tool("sub")]
    events = await ask(upstream, tools=Tools(tools, "forced", tools[:1], parallel_tool_calls=False))
    (body,) = server.asked
    assert [tool["function"]["name"] for tool in body["tools"]] == ["add", "sub"]
    assert [tool["function"].get("strict") for tool in body["tools"]] == [True, None]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "add"}}
    assert body["parallel_tool_calls"] is False
    assert text(events) == (
        'Let me see.<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>\n'
        '<tool_call>\n{"name": "sub", "arguments": {"b": 2}}\n</tool_call>'
    )
    assert [event.finish for event in events if isinstance(event, TokenDelta)][-1] == "stop"


async def test_a_slot_behind_text_continues_the_message(server: ScriptedServer) -> None:
    server.script = [says("red", finish="stop"), says("7")]
    upstream = await connected(server, "vllm")
    slots = {name: Slot(name, SamplingParams(max_tokens=3)) for name in ("colour", "number")}
    messages = [*HELLO, {"role": "assistant", "content": "It is <<colour>>, and <<number>>."}]
    prompt = PROMPTS.chat(ChatInput(messages, references=EVERY_NAME, slots=slots), ANSWER)
    context = OpenAIEngine("there", upstream, "fake").open("", URGENT)
    events: list[ContextEvent] = []
    for segment in prompt.segments:
        assert not isinstance(segment, Input)
        if not isinstance(segment, Slot):
            context.fill(content_of(segment))
        else:
            events += [event async for event in stream_events(context, segment.sampling)]
    context.free()
    await upstream.close()
    assert [body["messages"][-1]["content"] for body in server.asked] == ["It is ", "It is red, and "]
    assert all(body["continue_final_message"] and body["add_generation_prompt"] is False for body in server.asked)
    assert events[-1] == TokenCounts(6, 0, 2), "the first answer does not count as prompt of the second"


async def test_without_continuation_an_answer_is_begun_or_rejected(server: ScriptedServer, upstream: Upstream) -> None:
    await ask(upstream, [*HELLO, {"role": "assistant", "content": ""}], continue_final_message=True)
    assert server.asked[0]["messages"] == HELLO
    with pytest.raises(ContextRefused, match="continuation of an assistant message"):
        await ask(upstream, [*HELLO, {"role": "assistant", "content": "It is "}], continue_final_message=True)


async def test_a_completion_goes_to_completions(server: ScriptedServer, upstream: Upstream) -> None:
    engine = OpenAIEngine("there", upstream, "fake")
    context = engine.open("", URGENT)
    context.fill("Once upon")
    events = [
        event async for event in stream_events(context, SamplingParams(max_tokens=3, logprobs=True, top_logprobs=1))
    ]
    context.free()
    assert server.paths == ["/v1/completions"]
    assert (server.asked[0]["prompt"], server.asked[0]["max_tokens"], server.asked[0]["logprobs"]) == (
        "Once upon",
        3,
        1,
    )
    assert text(events) == "fake"


async def test_a_refused_field_is_left_out(server: ScriptedServer) -> None:
    server.script = [refuses(400, "Got priority 0 but Priority scheduling is not enabled: priority")]
    upstream = await connected(server, "vllm")
    assert text(await ask(upstream)) == "fake"
    assert ["priority" in body for body in server.asked] == [True, False]
    await ask(upstream)
    assert "priority" not in server.asked[-1], "the field is not sent again"
    server.script = [refuses(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")]
    await ask(upstream, sampling=SamplingParams(max_tokens=5))
    assert server.asked[-1]["max_completion_tokens"] == 5
    server.script = [refuses(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")]
    context = OpenAIEngine("there", upstream, "fake").open("", URGENT)
    context.fill("no chat")  # completions have no max_completion_tokens
    with pytest.raises(ContextRefused, match="Unsupported parameter"):
        assert [event async for event in stream_events(context, SamplingParams(max_tokens=5))]
    await upstream.close()


NO_PRIORITY = (  # sent by SGLang 0.5 with --abort-on-priority-when-disabled, within a stream
    b'data: {"error": {"object": "error", "message": "Using priority is disabled for this server. Please send a new '
    b'request without a priority.", "type": "SERVICE_UNAVAILABLE", "param": null, "code": 503}}\n\ndata: [DONE]\n\n'
)


async def test_a_field_that_is_refused_within_a_stream_is_left_out(server: ScriptedServer) -> None:
    server.script = [sends(NO_PRIORITY)]
    upstream = await connected(server, "sglang")
    events = await ask(upstream)
    assert text(events) == "fake"
    assert sum(isinstance(event, PrefillResult) for event in events) == 1
    assert ["priority" in body for body in server.asked] == [True, False]
    upstream.dropped.clear()
    begun = b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'
    server.script = [sends(begun + NO_PRIORITY)]
    with pytest.raises(EngineLost, match="priority is disabled"):
        await ask(upstream)
    assert len(server.asked) == 3, "text had been emitted, so there is no other try"
    await upstream.close()


async def test_without_a_salt_no_request_is_sent(server: ScriptedServer) -> None:
    server.script = [refuses(400, "cache_salt is not supported")]
    upstream = await connected(server, "vllm")
    with pytest.raises(ContextRefused, match="cache_salt"):
        await ask(upstream, scope="a")
    await ask(upstream, scope="a")
    assert all("cache_salt" in body for body in server.asked)
    await upstream.close()


async def test_the_most_urgent_request_is_sent_next(server: ScriptedServer) -> None:
    upstream = await connected(server, concurrency=1)
    engine = OpenAIEngine("there", upstream, "fake")
    release = asyncio.Event()

    async def waits(request: Any, body: dict[str, Any]) -> Any:
        await release.wait()
        return await says("x")(request, body)

    server.always = waits

    async def one(name: str, rank: float) -> None:
        context = engine.open("", Urgency(rank, interactive=False))
        contexts[name] = context
        context.fill(name)
        async for _ in stream_events(context, SamplingParams()):
            pass
        context.free()

    contexts: dict[str, Any] = {}
    tasks = [asyncio.create_task(one(name, rank)) for name, rank in (("a", 0), ("b", 9), ("c", 5), ("d", 7))]
    await until(lambda: len(server.asked) == 1 and len(contexts) == 4)
    contexts["b"].rerank(Urgency(1.0, interactive=True))
    tasks[2].cancel()
    release.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert [body["prompt"] for body in server.asked] == ["a", "b", "d"]
    assert upstream.limiter.running == 0
    await upstream.close()


async def test_a_refusal_that_quotes_the_client_does_not_change_other_requests(server: ScriptedServer) -> None:
    server.always = refuses(400, "bad regex: max_completion_tokens priority stream_options return_token_ids")
    upstream = await connected(server, "vllm")
    with pytest.raises(ContextRefused, match="bad regex"):
        await ask(upstream, sampling=SamplingParams(max_tokens=5))
    assert len(server.asked) == 3, "one try for the length, one for the other fields"
    server.always = None
    await ask(upstream, sampling=SamplingParams(max_tokens=5))
    assert {"max_tokens", "priority", "stream_options"} <= server.asked[-1].keys()
    await upstream.close()


async def test_a_stream_that_is_not_closed_after_its_end(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.engines.openai.engine._TAIL_SECONDS", 0.2)

    async def never_ends(request: Any, body: dict[str, Any]) -> Any:
        response = await stream(request, [chunk(body, "x", "stop")], done=False)
        await asyncio.sleep(60)
        return response

    server.script = [never_ends]
    upstream = await connected(server)
    assert text(await ask(upstream)) == "x"
    await upstream.close()


async def test_freeing_a_context_aborts_its_request(server: ScriptedServer, upstream: Upstream) -> None:
    server.script = [hangs("some")]
    engine = OpenAIEngine("there", upstream, "fake")
    context = engine.open("", URGENT)
    context.fill("x")
    events = stream_events(context, SamplingParams())
    await anext(events)
    await anext(events)
    context.free()
    await until(lambda: server.aborted == 1)
    with pytest.raises(EngineLost, match="was freed"):
        await anext(events)
    assert upstream.is_ready
    assert upstream.limiter.running == 0
