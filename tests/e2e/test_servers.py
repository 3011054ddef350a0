"""A gateway in front of upstream servers: what clients see of their answers and faults."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI, RateLimitError

from tests.fakes.checkpoints import write_tiny_llama
from tests.fakes.gateway_harness import GatewayHarness
from tests.fakes.scripted_messages import answers, call
from tests.fakes.scripted_messages import text as text_block
from tests.fakes.scripted_server import ScriptedServer, breaks_off, chunk, refuses, says, stream

pytestmark = pytest.mark.waits

ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


@asynccontextmanager
async def gateway(*arguments: str, env: dict[str, str] | None = None) -> AsyncIterator[GatewayHarness]:
    """Run a gateway. It starts and stops in a thread, so that upstream servers in the event loop can answer."""
    server = await asyncio.to_thread(GatewayHarness, *arguments, env=env)
    try:
        yield server
    finally:
        await asyncio.to_thread(server.stop)


@asynccontextmanager
async def asking(server: GatewayHarness, session: str | None = None) -> AsyncIterator[AsyncOpenAI]:
    headers = {"X-Semantic-Session": session} if session else {}
    async with AsyncOpenAI(
        base_url=f"{server.address}/v1", api_key="none", max_retries=0, default_headers=headers
    ) as client:
        yield client


async def ask(client: AsyncOpenAI, model: str, content: str, **more: Any) -> Any:
    messages: Any = [{"role": "user", "content": content}]
    return await client.chat.completions.create(model=model, messages=messages, **more)


def text(answer: Any) -> Any:
    return answer.choices[0].message.content


async def echoes(request: aiohttp.web.Request, body: dict[str, Any]) -> Any:
    """Answer with the model's name and the last message."""
    last = body["messages"][-1]["content"]
    return await says(f"{body['model']}({last})")(request, body)


async def test_a_client_receives_the_upstream_servers_answers() -> None:
    async with (
        ScriptedServer("big") as fake,
        gateway("--engine", f"openai={fake.url}") as server,
        asking(server) as client,
    ):
        fake.script = [says("Hello", " there", finish="length")]
        answer = await ask(client, "big", "hi", max_tokens=2)
        assert (text(answer), answer.choices[0].finish_reason, answer.model) == ("Hello there", "length", "big")
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 2)

        fake.script = [says("a", "b", "c")]
        pieces = [
            event.choices[0].delta.content or ""
            async for event in await ask(client, "big", "hi", stream=True)
            if event.choices
        ]
        assert "".join(pieces) == "abc"

        async def calls(request: Any, body: dict[str, Any]) -> Any:
            call = {"index": 0, "id": "call_9", "function": {"name": "add", "arguments": '{"a": 1}'}}
            return await stream(
                request, [{"choices": [{"delta": {"tool_calls": [call]}}]}, chunk(body, None, "tool_calls")]
            )

        for choice in ("auto", "required"):
            fake.script = [calls]
            answer = await ask(client, "big", "1+1?", tools=[ADD], tool_choice=choice)
            (call,) = answer.choices[0].message.tool_calls
            assert (call.function.name, call.function.arguments) == ("add", '{"a": 1}')
            assert answer.choices[0].finish_reason == "tool_calls"
        assert fake.asked[-1]["tool_choice"] == "required"

        top = {"token": "no", "logprob": -1.5, "bytes": [110, 111]}
        entry = {"token": "yes", "logprob": -0.5, "bytes": None, "top_logprobs": [top]}
        fake.script = [says("yes", logprobs={"content": [entry]})]
        answer = await ask(client, "big", "?", logprobs=True, top_logprobs=1)
        (logprob,) = answer.choices[0].logprobs.content
        assert (logprob.token, logprob.logprob, logprob.top_logprobs[0].token) == ("yes", -0.5, "no")

        listed = await client.models.list()
        assert [model.id for model in listed.data] == ["big"]


@pytest.mark.parametrize(
    ("behaviours", "status", "code"),
    [
        ([refuses(400, "maximum context length is 8")], 400, "context_length_exceeded"),
        ([refuses(422, "odd")], 400, "engine_refused"),
        ([refuses(401)], 503, "engine_failed"),
        ([refuses(500)] * 3, 503, "engine_failed"),
        ([breaks_off("some")] * 3, 503, "engine_failed"),
        ([refuses(429, "slow", {"Retry-After": "0.1"})] * 3, 429, "engine_overloaded"),
        ([refuses(500), breaks_off("some"), says("fine")], 200, None),
        ([refuses(429, "slow", {"Retry-After": "0.1"}), says("fine")], 200, None),
    ],
)
async def test_faults_end_as_documented(behaviours: list[Any], status: int, code: str | None, faulty: Any) -> None:
    fake, http = faulty
    fake.script, fake.asked = list(behaviours), []
    body = {"model": "big", "messages": [{"role": "user", "content": "hi"}]}
    async with http.post("/v1/chat/completions", json=body) as response:
        answer = await response.json()
    assert response.status == status, answer
    assert len(fake.asked) == len(behaviours)
    if code is None:
        assert answer["choices"][0]["message"]["content"] == "fine"
    else:
        assert answer["error"]["code"] == code
        assert status not in (429, 503) or response.headers["Retry-After"] == "1"
    async with http.post("/v1/chat/completions", json=body) as response:
        assert response.status == 200, "the server has recovered"


@pytest.fixture(scope="module")
async def faulty() -> AsyncIterator[Any]:
    async with (
        ScriptedServer("big") as fake,
        gateway("--engine", f"openai={fake.url}") as server,
        aiohttp.ClientSession(server.address) as http,
    ):
        yield fake, http


async def test_a_call_with_streamed_tokens_is_not_repeated() -> None:
    async with (
        ScriptedServer("big") as fake,
        gateway("--engine", f"openai={fake.url}") as server,
        asking(server) as client,
    ):
        fake.script = [breaks_off("some"), says("never")]
        with pytest.raises(Exception, match="broke the connection"):
            async for _ in await ask(client, "big", "hi", stream=True):
                pass
        assert len(fake.asked) == 1


async def test_a_graph_over_models_and_engines(tmp_path: Path) -> None:
    # in one session, a call on one server feeds a call on an embedded engine, and both feed a call on a third server
    tiny = write_tiny_llama(tmp_path / "tiny", window=512)
    async with ScriptedServer("draft") as first, ScriptedServer("judge", "other") as second:
        first.always = second.always = echoes
        engines = ("--engine", "embedded", "--engine", f"openai={first.url}", "--engine", f"vllm={second.url}")
        async with (
            gateway(*engines, "--model", str(tiny), "--kv-tokens", "2048") as server,
            asking(server, "s") as client,
        ):
            listed = {model.id async for model in client.models.list()}
            assert listed == {"tiny", "draft", "judge", "other"}
            calls = (("draft", "start", "a"), ("tiny", "<<a>>", "b"), ("judge", "<<a>>|<<b>>", "c"))
            responses = []
            for model, content, name in calls:
                semantic = {"output": name, "defer": name != "c"}
                responses.append(await ask(client, model, content, max_tokens=5, extra_body={"semantic": semantic}))
            assert [text(answer) for answer in responses[:2]] == ["<<a>>", "<<b>>"]
            assert text(responses[2]).startswith("judge(draft(start)|")
            async with aiohttp.ClientSession(server.address) as http, http.get("/v1/sessions/s/graph") as response:
                graph = await response.json()
            assert [call["engine"] for call in graph["calls"]] == ["openai", "embedded-0", "vllm:judge"]
            with pytest.raises(Exception, match="The model 'draf' does not exist; served: draft"):
                await ask(client, "draf", "hi")


async def test_an_available_engine_of_a_pool_answers() -> None:
    first, second = ScriptedServer("big"), ScriptedServer("big")
    async with first, second:
        first.always = second.always = echoes
        async with (
            gateway("--engine", f"vllm={first.url}", "--engine", f"vllm={second.url}") as server,
            asking(server, "s") as client,
        ):
            for number in range(8):
                await ask(client, "big", f"n{number}", extra_body={"semantic": {"output": f"v{number}", "defer": True}})
            answers = await asyncio.gather(*(ask(client, "big", f"number {number}") for number in range(8)))
            assert [text(answer) for answer in answers] == [f"big(number {number})" for number in range(8)]
            assert first.asked
            assert second.asked, "both servers got calls"
            await first.stop()
            answers = await asyncio.gather(*(ask(client, "big", f"again {number}") for number in range(8)))
            assert [text(answer) for answer in answers] == [f"big(again {number})" for number in range(8)]


async def test_a_fallback_model_answers(tmp_path: Path) -> None:
    tiny = write_tiny_llama(tmp_path / "tiny", window=512)
    async with ScriptedServer("big") as big, ScriptedServer("small") as small:
        big.always = small.always = echoes
        async with (
            gateway(
                *("--engine", f"openai={big.url}", "--engine", f"vllm={small.url}", "--engine", "embedded"),
                *("--model", str(tiny), "--kv-tokens", "2048"),
                *("--alias", "best=big", "--fallback", "big=small", "--fallback", "big=tiny"),
            ) as server,
            asking(server, "s") as client,
        ):
            assert text(await ask(client, "best", "hi")) == "big(hi)"
            big.script = [refuses(500)] * 3
            answer = await ask(client, "best", "hi you", max_tokens=5)
            assert (text(answer), answer.model) == ("small(hi you)", "small")
            assert small.asked[-1]["model"] == "small"
            while text(await ask(client, "best", "hi")) != "big(hi)":
                await asyncio.sleep(0.1)  # after a failure, the engine gets no calls for a while
            big.script = [refuses(400, "odd")]
            with pytest.raises(Exception, match="odd"):
                await ask(client, "best", "hi")  # a refusal has no fallback
            await big.stop()
            assert text(await ask(client, "big", "hi there")) == "small(hi there)"
            await small.stop()
            answer = await ask(client, "big", "and now", max_tokens=5, extra_body={"ignore_eos": True})
            assert answer.usage.completion_tokens == 5, "the embedded engine answered"
            schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["yes"]}}}
            assert text(await ask(client, "big", "sure?", response_format=schema)) == '"yes"'


async def test_status_429_has_the_upstream_servers_retry_time() -> None:
    async with (
        ScriptedServer("big") as fake,
        gateway("--engine", f"openai={fake.url}") as server,
        asking(server) as client,
    ):
        fake.always = refuses(429, "slow down", {"Retry-After": "0.1"})
        with pytest.raises(RateLimitError, match="slow down") as error:
            await ask(client, "big", "hi")
        assert error.value.response.headers["Retry-After"]


async def test_engines_are_configured_in_a_settings_file(tmp_path: Path) -> None:
    async with ScriptedServer("a", "b", "c") as first, ScriptedServer("a") as second:
        first.always = second.always = echoes
        config = tmp_path / "myna.toml"
        config.write_text(
            f"""
            alias = ["fast=b"]
            journal = "memory"

            [[engine]]
            kind = "vllm"
            name = "rack-1"
            url = "{first.url}/v1"
            key_env = "RACK_KEY"
            models = ["a", "b"]
            concurrency = 3

            [[engine]]
            kind = "sglang"
            url = "{second.url}"
            key = "sk-two"
            """
        )
        async with gateway("--config", str(config), env={"RACK_KEY": "sk-one"}) as server, asking(server) as client:
            assert "a, b of rack-1" in server.started
            assert [model.id async for model in client.models.list()] == ["a", "b"]
            assert text(await ask(client, "fast", "hi")) == "b(hi)"
            assert first.keys == ["Bearer sk-one"]
            await asyncio.gather(*(ask(client, "a", f"hi {number}") for number in range(6)))
            assert set(second.keys) == {"Bearer sk-two"}


async def test_an_impossible_start_has_an_error(tmp_path: Path) -> None:
    tiny = write_tiny_llama(tmp_path / "big", window=512)
    async with ScriptedServer("big") as fake:
        here = f"openai={fake.url}"
        for arguments, problem in (
            (("--engine", "openai=http://127.0.0.1:1", "--engine-wait", "0.2"), "127.0.0.1:1 cannot be reached"),
            (
                ("--engine", here, "--alias", "x=small"),
                "the alias x is for small, which is not served; served: big",
            ),
            (("--engine", here, "--fallback", "big=small"), "fallback: small is not served"),
            (
                ("--engine", here, "--engine", "embedded", "--model", str(tiny), "--kv-tokens", "1024"),
                "engine openai serves big like another engine, but with other prompts",
            ),
        ):
            with pytest.raises(RuntimeError, match=problem):
                async with gateway(*arguments):
                    pass


async def test_a_deferred_call_survives_a_restart(tmp_path: Path) -> None:
    async with ScriptedServer("big") as fake:
        arguments = ("--engine", f"openai={fake.url}", "--journal", str(tmp_path / "journal"))
        release = asyncio.Event()

        async def waits(request: Any, body: dict[str, Any]) -> Any:
            await release.wait()
            return await echoes(request, body)

        fake.always = waits
        async with gateway(*arguments) as server:
            async with asking(server, "s") as client:
                await ask(client, "big", "first", extra_body={"semantic": {"output": "a", "defer": True}})
                await ask(client, "big", "then <<a>>", extra_body={"semantic": {"output": "b", "defer": True}})
            server.process.kill()
            await asyncio.to_thread(server.process.wait)
        release.set()
        async with (
            gateway(*arguments) as server,
            aiohttp.ClientSession(server.address) as http,
            http.get("/v1/sessions/s/variables/b?wait=true&timeout=20") as response,
        ):
            variable = await response.json()
        assert variable["value"] == "big(then big(first))", json.dumps(variable)


async def test_clients_of_either_api_use_a_server_with_anthropics_api() -> None:
    async with (
        ScriptedServer("claude-big") as fake,
        gateway("--engine", f"anthropic={fake.url}", "--engine-key", "anthropic=secret-key") as server,
        asking(server) as client,
        AsyncAnthropic(base_url=server.address, api_key="none", max_retries=0) as anthropic,
    ):
        blocks = (text_block("Let me add. "), call("add", a=1))
        fake.always = answers(*blocks, reason="tool_use")
        answer = await ask(client, "claude-big", "hi", tools=[ADD])
        assert answer.choices[0].finish_reason == "tool_calls"
        assert json.loads(answer.choices[0].message.tool_calls[0].function.arguments) == {"a": 1}
        assert {name.lower(): value for name, value in fake.headers[-1].items()}["x-api-key"] == "secret-key"
        tool: Any = {"name": "add", "input_schema": {"type": "object"}}
        async with anthropic.messages.stream(
            model="claude-big", max_tokens=9, messages=[{"role": "user", "content": "hi"}], tools=[tool]
        ) as streamed:
            message = await streamed.get_final_message()
        assert [block.type for block in message.content] == ["text", "tool_use"]
        assert (message.model, message.stop_reason) == ("claude-big", "tool_use")
