"""gateway/engines/openai: requests to upstream servers, their answers, and their faults."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from gateway.engines.local.client import EngineStartFailed
from gateway.engines.openai import OpenAIEngine, Upstream, UpstreamConfig
from gateway.engines.openai.stream_parser import SseParser
from gateway.engines.protocol import (
    ContextEvent,
    ContextRefused,
    EngineBusy,
    EngineFailure,
    EngineLost,
    PrefillResult,
    TokenCounts,
    TokenDelta,
    Urgency,
)
from gateway.graph.sampling import SamplingParams
from gateway.graph.segments import Input, Messages, Slot, content_of
from gateway.prompts.passthrough_builder import PassthroughPromptBuilder
from gateway.prompts.prompt import ChatInput
from gateway.prompts.tool_calls.tools import Tool, Tools
from tests.gateway.engines.generation import URGENT, stream_events, text, until
from tests.upstream import ScriptedServer, breaks_off, chunk, hangs, refuses, says, sends, stream

DEFAULTS = SamplingParams()
ANSWER = Slot(None, DEFAULTS)
PROMPTS = PassthroughPromptBuilder()
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    async with ScriptedServer() as server:
        yield server


async def connected(server: ScriptedServer, kind: str = "openai", **options: Any) -> Upstream:
    upstream = Upstream(UpstreamConfig("there", kind, server.url, **options), lambda: None)
    await upstream.start()
    return upstream


@pytest.fixture
async def upstream(server: ScriptedServer) -> AsyncIterator[Upstream]:
    upstream = await connected(server, timeout=0.5)
    yield upstream
    await upstream.close()


async def ask(
    upstream: Upstream,
    messages: Sequence[dict[str, Any]] = HELLO,
    sampling: SamplingParams = DEFAULTS,
    scope: str = "",
    **how: Any,
) -> list[ContextEvent]:
    engine = OpenAIEngine("there", upstream, upstream.models[0].id)
    context = engine.open(scope, URGENT)
    prompt = PROMPTS.chat(ChatInput(messages, **how), ANSWER)
    for segment in prompt.segments:
        if not isinstance(segment, Input | Slot):
            context.fill(content_of(segment))
    try:
        return [event async for event in stream_events(context, sampling)]
    finally:
        context.free()
        assert engine.load == 0


# requests


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


async def test_parameters_are_passed_on(server: ScriptedServer, upstream: Upstream) -> None:
    await ask(
        upstream,
        sampling=SamplingParams(
            max_tokens=9,
            temperature=0.0,
            top_p=0.5,
            seed=3,
            stop=("a", "b"),
            presence_penalty=0.1,
            frequency_penalty=0.2,
            logit_bias={5: -1.0},
            logprobs=True,
            top_logprobs=2,
            json_schema='{"type": "object", "properties": {"a": {}}, "required": ["a"], "additionalProperties": false}',
        ),
    )
    (body,) = server.asked
    schema = {"type": "object", "properties": {"a": {}}, "required": ["a"], "additionalProperties": False}
    expected = {
        "max_tokens": 9,
        "temperature": 0.0,
        "top_p": 0.5,
        "seed": 3,
        "stop": ["a", "b"],
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "logit_bias": {"5": -1.0},
        "logprobs": True,
        "top_logprobs": 2,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": schema, "strict": True},
        },
    }
    assert {key: body[key] for key in expected} == expected


async def test_a_default_is_sent_if_the_client_specified_it(server: ScriptedServer, upstream: Upstream) -> None:
    await ask(upstream, sampling=SamplingParams(given=("temperature",)))
    assert server.asked[0]["temperature"] == 1.0
    assert "top_p" not in server.asked[0]


@pytest.mark.parametrize(
    ("sampling", "what"),
    [
        (SamplingParams(top_k=5), "top_k"),
        (SamplingParams(ignore_eos=True), "ignore_eos"),
        (SamplingParams(regex="a+"), "regex"),
        (SamplingParams(grammar='start: "a"'), "grammar"),
    ],
)
async def test_unsupported_parameters_are_rejected_by_name(
    server: ScriptedServer, upstream: Upstream, sampling: SamplingParams, what: str
) -> None:
    with pytest.raises(ContextRefused, match=what) as refusal:
        await ask(upstream, sampling=sampling)
    assert refusal.value.code == "unsupported_by_engine"
    assert not server.asked


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


async def test_api_keys_and_salts(server: ScriptedServer) -> None:
    upstream = await connected(server, "vllm", key="sk-1")
    for scope in ("a", "b", "a", ""):
        await ask(upstream, scope=scope)
    await upstream.close()
    assert server.keys == ["Bearer sk-1"] * 4
    salts = [body.get("cache_salt") for body in server.asked]
    assert salts[0] == salts[2] != salts[1]
    assert salts[3] is None
    assert len(salts[0]) == 64, "it cannot be guessed"


async def test_a_slot_behind_text_continues_the_message(server: ScriptedServer) -> None:
    server.script = [says("red", finish="stop"), says("7")]
    upstream = await connected(server, "vllm")
    slots = {name: Slot(name, SamplingParams(max_tokens=3)) for name in ("colour", "number")}
    messages = [*HELLO, {"role": "assistant", "content": "It is <<colour>>, and <<number>>."}]
    prompt = PROMPTS.chat(ChatInput(messages, references=True, slots=slots), ANSWER)
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
    context.fill(await engine.encode("Once upon"))
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


async def test_features_follow_from_the_documented_fields(server: ScriptedServer) -> None:
    server.knows("messages", "top_k", "continue_final_message", "add_generation_prompt", "cache_salt")
    upstream = await connected(server, "vllm")
    await ask(upstream, sampling=SamplingParams(top_k=3))
    assert "priority" not in server.asked[0], "the server does not document this field"
    with pytest.raises(ContextRefused, match="regex"):
        await ask(upstream, sampling=SamplingParams(regex="a"))
    await upstream.close()


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


async def test_connections_that_the_server_closed_are_no_failure(server: ScriptedServer, upstream: Upstream) -> None:
    await asyncio.gather(*(ask(upstream) for _ in range(8)))
    server.once = True
    answers = await asyncio.gather(*(ask(upstream) for _ in range(4)))
    assert [text(told) for told in answers] == ["fake"] * 4


async def test_without_a_salt_no_request_is_sent(server: ScriptedServer) -> None:
    server.script = [refuses(400, "cache_salt is not supported")]
    upstream = await connected(server, "vllm")
    with pytest.raises(ContextRefused, match="cache_salt"):
        await ask(upstream, scope="a")
    await ask(upstream, scope="a")
    assert all("cache_salt" in body for body in server.asked)
    await upstream.close()


async def test_a_redirect_is_not_followed_with_the_api_key(server: ScriptedServer) -> None:
    async with ScriptedServer() as other:
        server.script = [refuses(307, headers={"Location": f"{other.url}/v1/chat/completions"})]
        upstream = await connected(server, key="sk-1")
        with pytest.raises(ContextRefused, match="answered 307"):
            await ask(upstream)
        assert not other.asked
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
        context.fill(await engine.encode(name))
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


# faults


async def test_a_refused_connection(server: ScriptedServer) -> None:
    changes = []
    upstream = Upstream(UpstreamConfig("there", "openai", server.url), lambda: changes.append(upstream.is_ready))
    await upstream.start()
    await server.stop()
    with pytest.raises(EngineLost, match="cannot be reached") as lost:
        await ask(upstream)
    assert not lost.value.suspect
    assert not upstream.is_ready
    with pytest.raises(EngineLost, match="accepts no work now"):
        await ask(upstream)
    await server.start()
    await until(lambda: upstream.is_ready)
    assert text(await ask(upstream)) == "fake"
    assert changes == [True, False, True]
    await upstream.close()


async def test_too_many_requests(server: ScriptedServer, upstream: Upstream) -> None:
    server.script = [refuses(429, "slow down", {"Retry-After": "0.3"})]
    with pytest.raises(EngineBusy, match="slow down") as busy:
        await ask(upstream)
    assert busy.value.pause == 0.3
    assert not upstream.is_ready, "other requests are not sent either"
    await until(lambda: upstream.is_ready)
    assert text(await ask(upstream)) == "fake"


async def test_an_exhausted_quota_gets_no_other_attempt(server: ScriptedServer, upstream: Upstream) -> None:
    server.script = [refuses(429, "you exceeded your quota", code="insufficient_quota")]
    with pytest.raises(EngineFailure, match="exceeded your quota") as failure:
        await ask(upstream)
    assert not isinstance(failure.value, EngineLost)


async def test_server_errors_may_be_tried_again(server: ScriptedServer, upstream: Upstream) -> None:
    server.script = [refuses(500, "oh dear"), refuses(502, "oh dear")]
    for status in (500, 502):
        with pytest.raises(EngineLost, match=f"answered {status}: oh dear"):
            await ask(upstream)
        assert upstream.is_ready, "one or two failures do not bring the server down"
    await ask(upstream)
    server.script = [refuses(503)] * 3
    for _ in range(3):
        with pytest.raises(EngineLost):
            await ask(upstream)
    assert not upstream.is_ready
    await until(lambda: upstream.is_ready)
    server.script = [refuses(503)]
    with pytest.raises(EngineLost):
        await ask(upstream)
    assert not upstream.is_ready, "after a recovery, one more failure is enough"


async def test_failures_of_one_tenant_do_not_bring_a_server_down_for_others(
    server: ScriptedServer, upstream: Upstream
) -> None:
    await ask(upstream, scope="other")
    server.script = [refuses(500, "this cannot be computed")] * 10
    for number in range(9):
        with pytest.raises(EngineLost):
            await ask(upstream, scope=f"attacker\0salt {number}")
    assert upstream.is_ready
    with pytest.raises(EngineLost):
        await ask(upstream, scope="other")
    assert not upstream.is_ready, "it fails for other tenants too"


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


async def test_refusals_do_not_bring_a_server_down(server: ScriptedServer, upstream: Upstream) -> None:
    server.script = [
        refuses(400, "This model's maximum context length is 16 tokens. Shorten.", code=400),
        refuses(400, "too much", code="context_length_exceeded"),
        refuses(422, "temperature is odd"),
        refuses(404, "no such model"),
    ]
    for code in ("context_length_exceeded", "context_length_exceeded", "engine_refused", "engine_refused"):
        with pytest.raises(ContextRefused) as refusal:
            await ask(upstream)
        assert refusal.value.code == code
    assert upstream.is_ready


async def test_a_rejected_api_key(server: ScriptedServer, upstream: Upstream) -> None:
    server.script = [refuses(401, "who are you")]
    with pytest.raises(EngineFailure, match="does not accept the API key") as failure:
        await ask(upstream)
    assert not isinstance(failure.value, EngineLost), "another attempt would not help"


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


async def test_silence_before_an_answer_and_within_one(server: ScriptedServer, upstream: Upstream) -> None:
    server.script = [hangs(), hangs("some")]
    for _ in range(2):
        with pytest.raises(EngineLost, match=r"no data for 0\.5 s"):
            await ask(upstream)
    await until(lambda: server.aborted == 2)


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


async def test_an_event_in_many_pieces_takes_linear_time() -> None:
    began = time.monotonic()
    events = SseParser()
    said = b'data: {"x": "' + b"y" * 3_000_000 + b'"}\r\n\r\n'
    found = [event for begin in range(0, len(said), 64) for event in events.feed(said[begin : begin + 64])]
    assert [len(event) for event in found] == [len(said) - 10]
    assert time.monotonic() - began < 2


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
    context.fill(await engine.encode("x"))
    events = stream_events(context, SamplingParams())
    await anext(events)
    await anext(events)
    context.free()
    await until(lambda: server.aborted == 1)
    with pytest.raises(EngineLost, match="was freed"):
        await anext(events)
    assert upstream.is_ready
    assert upstream.limiter.running == 0


# health


async def test_a_server_with_a_failing_health_check_gets_no_work(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.engines.openai.upstream._PROBE_SECONDS", 0.1)
    upstream = await connected(server, "vllm")
    server.metrics = 'vllm:num_requests_running{model="a"} 3.0\nvllm:num_requests_waiting{model="a"} 4.0\nother 9\n'
    await until(lambda: upstream.external_requests == 7)
    assert OpenAIEngine("there", upstream, "fake").load == 7
    server.health = 503
    await until(lambda: not upstream.is_ready)
    await upstream.close()


@pytest.mark.parametrize(
    "schema",
    [
        {
            "paths": {
                "/v1/chat/completions": {
                    "post": {"requestBody": {"content": {"application/json": {"schema": {"$ref": []}}}}}
                }
            }
        },
        {"paths": {"/v1/chat/completions": 5}},
        [],
    ],
)
async def test_a_server_with_invalid_descriptions_is_still_watched(
    server: ScriptedServer, schema: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.engines.openai.upstream._PROBE_SECONDS", 0.1)
    server.schema, server.window = schema, -5
    server.metrics = "vllm:num_requests_running e\nvllm:num_requests_waiting 1e999\n" + "vllm:num_requests_running{" * 9
    upstream = await connected(server, "vllm")
    assert upstream.models[0].window is None
    await until(lambda: upstream.external_requests > 0)
    server.metrics = ""
    await until(lambda: upstream.external_requests == 0)
    server.health = 503
    await until(lambda: not upstream.is_ready)
    server.health = 200
    await until(lambda: upstream.is_ready)
    server.script = [refuses(429, "wait", {"Retry-After": "nan"})]
    with pytest.raises(EngineBusy):
        await ask(upstream)
    await upstream.close()


async def test_a_server_that_starts_later(server: ScriptedServer) -> None:
    await server.stop()
    with pytest.raises(EngineStartFailed, match="cannot be reached"):
        await Upstream(UpstreamConfig("there", "vllm", server.url), lambda: None).start()
    upstream = await connected(server, models=("fake",))
    assert not upstream.is_ready
    await server.start()
    await until(lambda: upstream.is_ready)
    assert upstream.models[0].window == 4096
    await upstream.close()


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
async def test_urls_with_and_without_their_version(server: ScriptedServer, suffix: str) -> None:
    upstream = Upstream(UpstreamConfig("there", "openai", server.url + suffix), lambda: None)
    await upstream.start()
    assert upstream.url == server.url
    await upstream.close()
