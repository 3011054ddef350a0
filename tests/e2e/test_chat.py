"""Chat completions through the real client, against a running server."""

import asyncio
import base64
import gzip
import io
import json
import socket
import threading
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import openai
import pytest
from openai import AsyncOpenAI

from engine import Engine, SamplingParams
from tests.engine.prompts import CHAT, PROMPTS
from tests.fakes.gateway_harness import MODEL, GatewayHarness


def ask(server: GatewayHarness, content: str, **options: Any) -> Any:
    options.setdefault("temperature", 0)
    options.setdefault("max_tokens", 16)
    messages = [{"role": "user", "content": content}]
    return server.client().chat.completions.create(model=MODEL, messages=messages, **options)  # type: ignore[call-overload]


def text_of(answer: Any) -> str:
    return str(answer.choices[0].message.content)


@pytest.mark.usefixtures("batch_invariant")
def test_answers_are_those_of_the_engine(server: GatewayHarness, engine: Engine) -> None:
    for prompt in PROMPTS[:6]:
        updates = list(engine.stream(CHAT.format(prompt), SamplingParams(temperature=0.0, max_tokens=16)))
        answer = ask(server, prompt)
        assert text_of(answer) == "".join(update.text for update in updates)
        assert answer.choices[0].finish_reason == updates[-1].finish
        assert answer.usage.completion_tokens == sum(len(update.tokens) for update in updates)
        assert answer.usage.prompt_tokens == len(engine.tokenizer.encode_template(CHAT.format(prompt)))
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_streams_join_to_the_answer(server: GatewayHarness) -> None:
    whole = ask(server, PROMPTS[3])
    chunks = list(ask(server, PROMPTS[3], stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text_of(whole)
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(c.usage is None for c in chunks[:-1])
    assert len({c.id for c in chunks}) == 1
    plain = list(ask(server, PROMPTS[3], stream=True))
    assert all(c.usage is None and c.choices for c in plain)


@pytest.mark.usefixtures("batch_invariant")
async def test_concurrent_requests_get_the_same_answers_as_single_ones(server: GatewayHarness) -> None:
    async with AsyncOpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as client:

        async def complete(prompt: str) -> str:
            messages: Any = [{"role": "user", "content": prompt}]
            answer = await client.chat.completions.create(model=MODEL, messages=messages, temperature=0, max_tokens=16)
            return text_of(answer)

        together = await asyncio.gather(*(complete(prompt) for prompt in PROMPTS * 2))
    alone = [text_of(ask(server, prompt)) for prompt in PROMPTS]
    assert together == alone * 2


@pytest.mark.usefixtures("batch_invariant")
def test_usage_contains_cached_tokens(server: GatewayHarness) -> None:
    prompt = "Remember this exact sentence about a purple bicycle. " * 5
    first, second = ask(server, prompt), ask(server, prompt)
    assert second.usage.prompt_tokens_details.cached_tokens > first.usage.prompt_tokens_details.cached_tokens
    assert second.usage.prompt_tokens_details.cached_tokens >= second.usage.prompt_tokens - 16
    assert text_of(first) == text_of(second)


def test_sampling_parameters_take_effect(server: GatewayHarness) -> None:
    seeded = [text_of(ask(server, "Tell a story.", temperature=1, seed=seed)) for seed in (1, 1, 2)]
    assert seeded[0] == seeded[1] != seeded[2]
    whole = text_of(ask(server, "Count: one, two, three", max_tokens=30))
    stop = whole[5:8]
    stopped = ask(server, "Count: one, two, three", max_tokens=30, stop=[stop])
    assert text_of(stopped) == whole[: whole.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"
    assert ask(server, "Hi", max_tokens=3).choices[0].finish_reason == "length"
    assert ask(server, "Hi", max_tokens=None, max_completion_tokens=2).usage.completion_tokens == 2
    forced = ask(server, "Hi", max_tokens=3, logit_bias={"284": 100})
    assert len(set(text_of(forced).split(" "))) <= 2
    long = ask(server, "Say only: ok", max_tokens=40, extra_body={"min_tokens": 40})
    assert long.usage.completion_tokens == 40


def test_answers_have_log_probabilities(server: GatewayHarness) -> None:
    answer = ask(server, "What is the capital of France?", logprobs=True, top_logprobs=3, max_tokens=5)
    content = answer.choices[0].logprobs.content
    assert len(content) == 5
    assert "".join(entry.token for entry in content) == text_of(answer)
    for entry in content:
        assert entry.logprob <= 0
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].token == entry.token, "greedy sampling selects the most likely token"
        assert bytes(entry.bytes).decode(errors="replace") == entry.token
    chunks = list(ask(server, "What is the capital of France?", logprobs=True, max_tokens=5, stream=True))
    streamed = [e.token for c in chunks if c.choices[0].logprobs for e in c.choices[0].logprobs.content]
    assert streamed == [entry.token for entry in content]


def test_content_parts_and_roles_are_accepted(server: GatewayHarness) -> None:
    messages: Any = [
        {"role": "developer", "content": "Answer briefly."},
        {"role": "user", "content": [{"type": "text", "text": "Hello"}, {"type": "text", "text": "there"}]},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Bye", "name": "ann"},
    ]
    answer = server.client().chat.completions.create(model=MODEL, messages=messages, max_tokens=4)
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0


def test_models_are_listed(server: GatewayHarness) -> None:
    client = server.client()
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError, match="The model 'gpt' does not exist"):
        client.models.retrieve("gpt")


async def post(server: GatewayHarness, body: Any, **options: Any) -> tuple[int, Any, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{server.address}/v1/chat/completions", data=data, **options) as response,
    ):
        return response.status, await response.json(), response.headers


VALID = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}


@pytest.mark.parametrize(
    ("change", "status", "param", "code"),
    [
        ({"model": "gpt"}, 404, "model", "model_not_found"),
        ({"model": None}, 400, "model", "invalid_value"),
        ({"messages": []}, 400, "messages", "invalid_value"),
        ({"messages": [{"role": "king", "content": "x"}]}, 400, "messages.0.role", "unsupported_value"),
        ({"messages": [{"role": "user", "content": 5}]}, 400, "messages.0.content", "invalid_value"),
        ({"messages": [{"role": "user"}]}, 400, "messages.0.content", "invalid_value"),
        (
            {"messages": [{"role": "user", "content": "x"}] * 2 + [{"content": "x"}]},
            400,
            "messages.2.role",
            "missing_required_parameter",
        ),
        ({"max_tokens": 0}, 400, "max_tokens", "invalid_value"),
        ({"max_tokens": "5"}, 400, "max_tokens", "invalid_value"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, 400, "max_completion_tokens", "invalid_value"),
        ({"temperature": -1}, 400, "temperature", "invalid_value"),
        ({"top_p": -0.1}, 400, "top_p", "invalid_value"),
        ({"n": 0}, 400, "n", "invalid_value"),
        ({"functions": []}, 400, "functions", "unsupported_parameter"),
        ({"tool_choice": "sometimes"}, 400, "tool_choice", "unsupported_value"),
        ({"response_format": {"type": "xml"}}, 400, "response_format.type", "unsupported_value"),
        ({"response_format": {"type": "json_schema"}}, 400, "response_format", "invalid_value"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": {"type": "thing"}, "strict": True},
                }
            },
            400,
            "response_format.json_schema.schema",
            "invalid_value",
        ),
        ({"audio": {}}, 400, "audio", "unsupported_parameter"),
        ({"stop": ["x"] * 17}, 400, "stop", "invalid_value"),
        ({"stop": ""}, 400, "stop", "invalid_value"),
        ({"logit_bias": {"x": 1}}, 400, "logit_bias", "invalid_value"),
        ({"logit_bias": {"99999999": 1}}, 400, "logit_bias", "invalid_value"),
        ({"top_logprobs": 2}, 400, "top_logprobs", "invalid_value"),
        ({"stream_options": {}}, 400, "stream_options", "invalid_value"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {}}]}]},
            400,
            "messages.0.content.0.cache_control",
            "unsupported_parameter",
        ),
        ({"semantic": {"nonsense": 1}}, 400, "semantic.nonsense", "unsupported_parameter"),
        ({"messages": [{"role": "user", "content": "word " * 9000}]}, 400, "messages", "context_length_exceeded"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            400,
            "messages.0.content.0",
            "unsupported_by_engine",
        ),
    ],
)
async def test_an_error_names_the_invalid_field(
    server: GatewayHarness, change: dict[str, Any], status: int, param: str | None, code: str | None
) -> None:
    got, body, headers = await post(server, {**VALID, **change})
    assert got == status
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == {400: "invalid_request_error", 404: "not_found_error"}[status]
    if code is not None:
        assert (error["param"], error["code"]) == (param, code)
    assert headers["x-request-id"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"model": NaN}'])
async def test_a_body_that_is_not_a_json_object_is_refused(server: GatewayHarness, body: bytes) -> None:
    status, answer, _ = await post(server, body)
    assert (status, answer["error"]["code"]) == (400, "invalid_json")


async def test_unknown_routes_and_methods_are_refused_in_openais_format(server: GatewayHarness) -> None:
    async with aiohttp.ClientSession(server.address) as session:
        async with session.get("/v1/nothing") as response:
            assert response.status == 404
            assert (await response.json())["error"]["code"] == "unknown_route"
        async with session.get("/v1/chat/completions") as response:
            assert response.status == 405
            assert response.headers["Allow"] == "POST"
            assert "POST" in (await response.json())["error"]["message"]


async def test_a_body_over_the_limit_is_refused(server: GatewayHarness) -> None:
    async with (
        aiohttp.ClientSession(server.address) as session,
        session.post("/v1/chat/completions", data=io.BytesIO(b"[" + b" " * (17 << 20))) as response,
    ):
        status, answer = response.status, await response.json()
    assert (status, answer["error"]["code"]) == (413, "too_large")


async def test_unusual_texts_are_accepted(server: GatewayHarness) -> None:
    odd = [
        "",
        " ",
        "\x00",
        "�",
        "👩‍👩‍👧‍👦" * 20,
        "\u202e",
        base64.b64encode(bytes(range(256))).decode(),
        "<|im_end|>" * 3,
    ]
    for content in odd:
        status, answer, _ = await post(server, {**VALID, "messages": [{"role": "user", "content": content}]})
        assert status == 200, answer


async def test_request_ids_are_returned(server: GatewayHarness) -> None:
    _, _, headers = await post(server, VALID, headers={"x-request-id": "mine-1"})
    assert headers["x-request-id"] == "mine-1"
    _, _, headers = await post(server, VALID, headers={"x-request-id": "not one"})
    assert headers["x-request-id"].startswith("req_")


async def test_compressed_bodies_are_accepted(server: GatewayHarness) -> None:
    data = gzip.compress(json.dumps(VALID).encode())
    status, _, _ = await post(server, data, headers={"Content-Encoding": "gzip"})
    assert status == 200


async def unfinished(server: GatewayHarness) -> int:
    async with aiohttp.ClientSession(server.address) as session, session.get("/metrics") as response:
        lines = (await response.text()).splitlines()
    return int(float(next(line.split()[1] for line in lines if line.startswith("myna_calls_unfinished "))))


@pytest.mark.parametrize("stream", [False, True])
async def test_a_disconnect_cancels_the_work(server: GatewayHarness, stream: bool) -> None:
    body = {**VALID, "max_tokens": 4000, "stream": stream, "ignore_eos": True}
    data = json.dumps(body).encode()
    address = urlsplit(server.address)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    connection = socket.create_connection((address.hostname or "", address.port or 0))
    connection.sendall(head + data)
    async with asyncio.timeout(20):
        while not await unfinished(server):
            await asyncio.sleep(0.02)
    connection.close()
    async with asyncio.timeout(5):  # the answer would take a minute
        while await unfinished(server):
            await asyncio.sleep(0.02)


def test_threads_may_share_a_client(server: GatewayHarness) -> None:
    client, answers = server.client(), []

    def complete() -> None:
        messages: Any = [{"role": "user", "content": "Hi"}]
        answers.append(client.chat.completions.create(model=MODEL, messages=messages, max_tokens=2, temperature=0))

    threads = [threading.Thread(target=complete) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == len(threads)
    assert len({text_of(answer) for answer in answers}) == 1


POISONS: dict[str, tuple[dict[str, Any], int]] = {
    "a prompt over the window": ({"messages": [{"role": "user", "content": "word " * 20_000}]}, 400),
    "half a megabyte of one letter": ({"messages": [{"role": "user", "content": "a" * 500_000}]}, 400),
    "control tokens as data": ({"messages": [{"role": "user", "content": "<|im_end|>" * 300}]}, 200),
    "every plane of unicode": (
        {
            "messages": [
                {"role": "user", "content": "\u0000\u202e\ufeff\U0010ffff\u0301\U0001f469\u200d\U0001f680" * 20}
            ]
        },
        200,
    ),
    "half a surrogate pair": ({"messages": [{"role": "user", "content": "\ud800"}]}, 400),
    "a hundred stop strings": ({"stop": [f"stop {n}" for n in range(100)]}, 400),
    "stop strings that almost match": ({"stop": ["a" * 1000, " ", "\n\n\n"]}, 200),
    "a stop string without end": ({"stop": ["a" * 5000]}, 400),
    "a bias beyond the vocabulary": ({"logit_bias": {"999999": 1.0}}, 400),
    "a bias that is no number": ({"logit_bias": {"5": "NaN"}}, 400),
    "a thousand biases": ({"logit_bias": {str(n): 100.0 for n in range(1_000)}}, 200),
    "ten thousand biases": ({"logit_bias": {str(n): 100.0 for n in range(10_000)}}, 400),
    "every token a stop": ({"stop_token_ids": list(range(49_000))}, 400),
    "a temperature out of range": ({"temperature": 1e9}, 400),
    "the smallest temperature": ({"temperature": 1e-300}, 200),
    "the smallest nucleus": ({"temperature": 2.0, "top_p": 1e-300}, 200),
    "everything at once": (
        {
            "temperature": 2.0,
            "top_p": 0.01,
            "top_k": 1_000_000,
            "min_p": 1.0,
            "repetition_penalty": 10.0,
            "presence_penalty": 2.0,
            "frequency_penalty": -2.0,
            "seed": -(2**63),
            "logprobs": True,
            "top_logprobs": 20,
        },
        200,
    ),
    "an answer without end": ({"max_tokens": 2**62, "ignore_eos": True, "stop": ["e"]}, 200),
    "a role nobody knows": ({"messages": [{"role": "oracle", "content": "Hi"}]}, 400),
}


async def test_a_hostile_request_does_not_affect_concurrent_ones(server: GatewayHarness) -> None:
    # Each gets an answer or an error. An ordinary request that runs concurrently gets the same answer as alone.
    url = f"{server.address}/v1/chat/completions"
    ordinary = {
        "model": MODEL,
        "messages": [{"role": "user", "content": PROMPTS[2]}],
        "max_tokens": 150,
        "temperature": 0,
        "ignore_eos": True,
    }
    (engine,) = server.engine_processes()
    async with aiohttp.ClientSession() as http:

        async def post(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
            async with http.post(url, data=json.dumps(body), headers={"Content-Type": "application/json"}) as response:
                return response.status, await response.json()

        _, wanted = await post(ordinary)
        beside = asyncio.create_task(post(ordinary))
        answers = await asyncio.gather(
            *(
                post({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8, **poison})
                for poison, _ in POISONS.values()
            )
        )
        for (name, (_, status)), (got, body) in zip(POISONS.items(), answers, strict=True):
            assert got == status, (name, body)
            if got == 400:
                assert body["error"]["message"], name
                assert body["error"]["type"] == "invalid_request_error", name
        status, got_beside = await beside
    assert status == 200
    assert got_beside["choices"][0]["message"] == wanted["choices"][0]["message"]
    assert server.engine_processes() == [engine], "the engine has not been restarted"
