"""A gateway before servers that are not ours: what clients see of them, and of their faults."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from openai import AsyncOpenAI, RateLimitError

from tests.checkpoints import write_tiny_llama
from tests.server import Server
from tests.upstream import FakeServer, breaks_off, chunk, refuses, says, stream

pytestmark = pytest.mark.waits

ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


@asynccontextmanager
async def gateway(*arguments: str, env: dict[str, str] | None = None) -> AsyncIterator[Server]:
    """Started and stopped beside the event loop: servers of the test's own go on answering in it."""
    server = await asyncio.to_thread(Server, *arguments, env=env)
    try:
        yield server
    finally:
        await asyncio.to_thread(server.stop)


@asynccontextmanager
async def asking(server: Server, session: str | None = None) -> AsyncIterator[AsyncOpenAI]:
    headers = {"X-Session-Id": session} if session else {}
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
    """Says what it was told last, and by whom it was said."""
    last = body["messages"][-1]["content"]
    return await says(f"{body['model']}({last})")(request, body)


async def test_a_client_sees_the_servers_answers() -> None:
    async with FakeServer("big") as fake, gateway("--engine", f"openai={fake.url}") as server, asking(server) as client:
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
        (told,) = answer.choices[0].logprobs.content
        assert (told.token, told.logprob, told.top_logprobs[0].token) == ("yes", -0.5, "no")

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
        assert response.status == 200, "it is well again"


@pytest.fixture(scope="module")
async def faulty() -> AsyncIterator[Any]:
    async with (
        FakeServer("big") as fake,
        gateway("--engine", f"openai={fake.url}") as server,
        aiohttp.ClientSession(server.address) as http,
    ):
        yield fake, http


async def test_what_was_shown_is_not_tried_again() -> None:
    async with FakeServer("big") as fake, gateway("--engine", f"openai={fake.url}") as server, asking(server) as client:
        fake.script = [breaks_off("some"), says("never")]
        with pytest.raises(Exception, match="broke off"):
            async for _ in await ask(client, "big", "hi", stream=True):
                pass
        assert len(fake.asked) == 1


async def test_a_graph_over_models_and_engines(tmp_path: Path) -> None:
    """One session: a call of one server's model feeds one of an embedded engine, and both a third server's."""
    tiny = write_tiny_llama(tmp_path / "tiny", window=512)
    async with FakeServer("draft") as one, FakeServer("judge", "other") as two:
        one.always = two.always = echoes
        engines = ("--engine", "embedded", "--engine", f"openai={one.url}", "--engine", f"vllm={two.url}")
        async with (
            gateway(*engines, "--model", str(tiny), "--kv-tokens", "2048") as server,
            asking(server, "s") as client,
        ):
            listed = {model.id async for model in client.models.list()}
            assert listed == {"tiny", "draft", "judge", "other"}
            asked = (("draft", "start", "a"), ("tiny", "<<a>>", "b"), ("judge", "<<a>>|<<b>>", "c"))
            told = []
            for model, content, name in asked:
                semantic = {"output": name, "defer": name != "c"}
                told.append(await ask(client, model, content, max_tokens=5, extra_body={"semantic": semantic}))
            assert [text(answer) for answer in told[:2]] == ["<<a>>", "<<b>>"]
            assert text(told[2]).startswith("judge(draft(start)|")
            async with aiohttp.ClientSession(server.address) as http, http.get("/v1/sessions/s/graph") as response:
                graph = await response.json()
            assert [call["engine"] for call in graph["calls"]] == ["openai", "embedded-0", "vllm:judge"]
            with pytest.raises(Exception, match="there is no model 'draf'; served: draft"):
                await ask(client, "draf", "hi")


async def test_of_a_pool_the_one_that_is_there_answers() -> None:
    one, two = FakeServer("big"), FakeServer("big")
    async with one, two:
        one.always = two.always = echoes
        async with (
            gateway("--engine", f"vllm={one.url}", "--engine", f"vllm={two.url}") as server,
            asking(server, "s") as client,
        ):
            for at in range(8):
                await ask(client, "big", f"n{at}", extra_body={"semantic": {"output": f"v{at}", "defer": True}})
            answers = await asyncio.gather(*(ask(client, "big", f"number {at}") for at in range(8)))
            assert [text(answer) for answer in answers] == [f"big(number {at})" for at in range(8)]
            assert one.asked
            assert two.asked, "both were asked"
            await one.stop()
            answers = await asyncio.gather(*(ask(client, "big", f"again {at}") for at in range(8)))
            assert [text(answer) for answer in answers] == [f"big(again {at})" for at in range(8)]


async def test_another_model_answers_in_ones_place(tmp_path: Path) -> None:
    tiny = write_tiny_llama(tmp_path / "tiny", window=512)
    async with FakeServer("big") as big, FakeServer("small") as small:
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
                await asyncio.sleep(0.1)  # it is left alone for a while
            big.script = [refuses(400, "odd")]
            with pytest.raises(Exception, match="odd"):
                await ask(client, "best", "hi")  # a refusal is an answer
            await big.stop()
            assert text(await ask(client, "big", "hi there")) == "small(hi there)"
            await small.stop()
            answer = await ask(client, "big", "and now", max_tokens=5, extra_body={"ignore_eos": True})
            assert answer.usage.completion_tokens == 5, "the embedded one answered"
            schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["yes"]}}}
            assert text(await ask(client, "big", "sure?", response_format=schema)) == '"yes"'


async def test_too_many_requests_are_told_with_their_time() -> None:
    async with FakeServer("big") as fake, gateway("--engine", f"openai={fake.url}") as server, asking(server) as client:
        fake.always = refuses(429, "slow down", {"Retry-After": "0.1"})
        with pytest.raises(RateLimitError, match="slow down") as error:
            await ask(client, "big", "hi")
        assert error.value.response.headers["Retry-After"]


async def test_a_file_of_settings(tmp_path: Path) -> None:
    async with FakeServer("a", "b", "c") as one, FakeServer("a") as two:
        one.always = two.always = echoes
        config = tmp_path / "myna.toml"
        config.write_text(
            f"""
            alias = ["fast=b"]
            journal = "memory"

            [[engine]]
            kind = "vllm"
            name = "rack-1"
            url = "{one.url}/v1"
            key_env = "RACK_KEY"
            models = ["a", "b"]
            concurrency = 3

            [[engine]]
            kind = "sglang"
            url = "{two.url}"
            key = "sk-two"
            """
        )
        async with gateway("--config", str(config), env={"RACK_KEY": "sk-one"}) as server, asking(server) as client:
            assert "a, b of rack-1" in server.started
            assert [model.id async for model in client.models.list()] == ["a", "b"]
            assert text(await ask(client, "fast", "hi")) == "b(hi)"
            assert one.keys == ["Bearer sk-one"]
            await asyncio.gather(*(ask(client, "a", f"hi {at}") for at in range(6)))
            assert set(two.keys) == {"Bearer sk-two"}


async def test_starts_that_cannot_be_say_why(tmp_path: Path) -> None:
    tiny = write_tiny_llama(tmp_path / "big", window=512)
    async with FakeServer("big") as fake:
        here = f"openai={fake.url}"
        for arguments, problem in (
            (("--engine", "openai=http://127.0.0.1:1", "--engine-wait", "0.2"), "127.0.0.1:1 cannot be reached"),
            (
                ("--engine", here, "--alias", "x=small"),
                "the alias x stands for small, which nobody serves; served: big",
            ),
            (("--engine", here, "--fallback", "big=small"), "fallback names small, which nobody serves"),
            (
                ("--engine", here, "--engine", "embedded", "--model", str(tiny), "--kv-tokens", "1024"),
                "engine openai serves big as another engine does, and is given other prompts",
            ),
        ):
            with pytest.raises(RuntimeError, match=problem):
                async with gateway(*arguments):
                    pass


async def test_a_call_that_was_deferred_outlives_its_gateway(tmp_path: Path) -> None:
    async with FakeServer("big") as fake:
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
            told = await response.json()
        assert told["value"] == "big(then big(first))", json.dumps(told)
