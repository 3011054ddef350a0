"""Graphs in one request, and completions."""

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from tests.e2e.session_client import SessionClient, content
from tests.fakes.gateway_harness import MODEL, GatewayHarness


def chat(text: str, output: str | None = None, **semantic: Any) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 6,
        "temperature": 0,
    }
    if output is not None or semantic:
        body["semantic"] = {**({"output": output} if output else {}), **semantic}
    return body


@pytest.mark.usefixtures("batch_invariant")
async def test_a_graph_gives_the_answers_of_single_calls(api: SessionClient) -> None:
    status, answer = await api.call(
        "POST",
        "/graphs",
        {
            "variables": {
                "topic": "bees",
                "style": {"value": {"kind": "short"}},
                "page": {"template": "<<topic>>: <<b>>"},
            },
            "calls": [chat("<<style.kind>>\n<<a>>", "b"), chat("Write about\n<<topic>>", "a")],
        },
    )
    assert status == 200, answer
    first = await api.ask("Write about\nbees", max_tokens=6)
    second = await api.ask(f"short\n{content(first)}", max_tokens=6)
    assert answer["outputs"] == {"page": f"bees: {content(second)}"}, "the outputs are the variables that no call reads"
    assert "errors" not in answer
    usage = answer["usage"]
    assert usage["completion_tokens"] == sum(call.usage.completion_tokens for call in (first, second))
    assert usage["prompt_tokens"] == sum(call.usage.prompt_tokens for call in (first, second))
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    _, graph = await api.call("GET", f"/sessions/{answer['session']}/graph")
    assert {variable["name"]: variable["value"] for variable in graph["variables"]}["a"] == content(first)


async def test_calls_that_the_outputs_do_not_need_are_cancelled(api: SessionClient) -> None:
    await api.put("old", "water")
    calls = [chat("About <<old>>", "a"), chat("About <<a>>", "b"), chat("Unneeded", "c"), chat("Kept", "d", defer=True)]
    status, answer = await api.call(
        "POST", "/graphs", {"session": api.session, "calls": calls, "outputs": ["a", "old"]}
    )
    assert status == 200, answer
    assert answer["session"] == api.session
    assert list(answer["outputs"]) == ["a", "old"]
    assert answer["outputs"]["old"] == "water"
    assert answer["outputs"]["a"]
    states = {name: (await api.variable(name))["state"] for name in "abcd"}
    assert states == {"a": "ready", "b": "cancelled", "c": "cancelled", "d": "ready"}


async def test_a_graph_can_be_streamed_as_events(api: SessionClient) -> None:
    body = {"session": api.session, "calls": [chat("Hi", "a"), chat("<<a>>", "b")], "stream": True}
    async with api.http.post("/v1/graphs", json=body) as response:
        assert response.content_type == "text/event-stream"
        text = (await response.read()).decode()
    events = [
        (lines["event"], json.loads(lines["data"]), lines.get("id"))
        for block in text.split("\n\n")
        if block and not block.startswith(":")
        for lines in [dict(line.split(": ", 1) for line in block.splitlines())]
    ]
    states = [(value["name"], value["state"]) for kind, value, _ in events if kind == "variable"]
    assert states.index(("a", "ready")) < states.index(("b", "ready"))
    ids = [int(id) for _, _, id in events if id]
    assert ids == sorted(set(ids))
    kind, answer, _ = events[-1]
    assert kind == "graph"
    assert answer["outputs"]["b"] == (await api.variable("b"))["value"]


async def test_a_failed_output_has_an_error_and_the_others_have_values(api: SessionClient) -> None:
    failing = chat("Hi", "a", transform={"regex": "nothing of the kind"})
    status, answer = await api.call("POST", "/graphs", {"calls": [failing, chat("<<a>>", "b"), chat("Yes", "c")]})
    assert status == 200
    assert answer["outputs"]["b"] is None
    assert answer["outputs"]["c"]
    assert answer["errors"]["b"]["code"] == "upstream_failed"
    assert "transform_failed" in answer["errors"]["b"]["message"]


SLOT = {"slots": {"s": {}}}


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"calls": [chat("<<b>>", "a"), chat("<<a>>", "b")]}, 400, "cycle", "calls.0.messages.0.content"),
        ({"calls": [chat("a", "a"), chat("<<nope>>", "b")]}, 400, "unknown_variable", "calls.1.messages.0.content"),
        ({"calls": [chat("a", "a"), chat("b", "a")]}, 409, "variable_already_set", "calls.1.semantic.output"),
        ({"calls": [chat("a", "a b")]}, 400, "bad_reference", "calls.0.semantic.output"),
        ({"calls": [chat("a", "a", **SLOT)]}, 400, "slot_without_place", "calls.0.semantic.slots.s"),
        ({"calls": [chat("a", "a")], "outputs": ["a", "b"]}, 400, "unknown_variable", "outputs.1"),
        ({"calls": [{**chat("a"), "stream": True}]}, 400, "unsupported_with_semantic", "calls.0.stream"),
        ({"calls": [{**chat("a"), "model": "no"}]}, 404, "model_not_found", "calls.0.model"),
        ({"calls": [{**chat("a"), "max_tokens": 0}]}, 400, "invalid_value", "calls.0.max_tokens"),
        ({"calls": [{"model": MODEL}]}, 400, "missing_required_parameter", "calls.0.messages"),
        ({"calls": ["a"]}, 400, "invalid_value", "calls.0"),
        ({"calls": [chat("a", "a", session="other")]}, 400, "session_conflict", "calls.0.semantic.session"),
        ({"calls": [chat("x" * 60_000)]}, 400, "context_length_exceeded", "calls.0.messages"),
        (
            {"calls": [chat("a", inputs={"x": "y"}), chat("b", inputs={"x": "z"})]},
            409,
            "variable_already_set",
            "calls.1.semantic.inputs.x",
        ),
        ({"variables": {"t": {"template": "<<nope>>"}}}, 400, "unknown_variable", "variables.t.template"),
        ({"variables": {"t": {"template": "<<t>>"}}}, 400, "cycle", "variables.t.template"),
        ({"variables": {"1t": "x"}}, 400, "bad_reference", "variables.1t"),
        ({"variables": {"t": {"template": 3}}}, 400, "invalid_value", "variables.t.template"),
        ({"session": "not-there"}, 404, "session_not_found", None),
        ({"nonsense": 1}, 400, "unsupported_parameter", "nonsense"),
    ],
)
async def test_a_graph_is_checked_before_any_of_it_runs(
    api: SessionClient,
    body: dict[str, Any],
    status: int,
    code: str,
    param: str | None,
) -> None:
    _, before = await api.call("GET", "/sessions")
    got, answer = await api.call("POST", "/graphs", body)
    assert (got, answer["error"]["code"], answer["error"]["param"]) == (status, code, param), answer
    got, answer = await api.call("POST", "/graphs", {"session": api.session, **body})
    assert answer["error"]["code"] in (code, "session_conflict")
    graph = await api.graph()
    assert graph == {"last_event_id": 0, "calls": [], "variables": [], "edges": []}
    _, after = await api.call("GET", "/sessions")
    assert {s["id"] for s in after["data"]} == {s["id"] for s in before["data"]}


async def test_a_disconnect_cancels_a_graph(api: SessionClient) -> None:
    long = {**chat("Go on", "a"), "max_tokens": 2000, "ignore_eos": True}
    body = {"session": api.session, "calls": [long, chat("<<a>>", "b")]}
    task = asyncio.create_task(api.call("POST", "/graphs", body))
    while "decode" not in [call["state"] for call in (await api.graph())["calls"]]:
        await asyncio.sleep(0.02)
    task.cancel()
    async with asyncio.timeout(10):  # the test must not wait for a variable: it would be a subscriber
        while {call["state"] for call in (await api.graph())["calls"]} != {"cancelled"}:
            await asyncio.sleep(0.02)


async def complete(http: aiohttp.ClientSession, **body: Any) -> Any:
    async with http.post("/v1/completions", json={"model": MODEL, "temperature": 0, "max_tokens": 8, **body}) as got:
        return got.status, await got.json()


@pytest.mark.usefixtures("batch_invariant")
async def test_completions(server: GatewayHarness, api: SessionClient) -> None:
    client = api.openai
    text = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    plain = await client.completions.create(model=MODEL, prompt=text, max_tokens=12, temperature=0)
    assert "Paris" in plain.choices[0].text
    assert plain.object == "text_completion"
    assert plain.usage is not None
    assert plain.usage.total_tokens == plain.usage.prompt_tokens + plain.usage.completion_tokens
    stream = await client.completions.create(
        model=MODEL, prompt=text, max_tokens=12, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == plain.choices[0].text
    assert chunks[-2].choices[0].finish_reason == plain.choices[0].finish_reason
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == plain.usage.completion_tokens
    default = await client.completions.create(
        model=MODEL, prompt="Once upon", temperature=0, extra_body={"ignore_eos": True}
    )
    assert default.usage is not None
    assert default.usage.completion_tokens == 16, "OpenAI's default"


async def test_completions_read_and_produce_variables(api: SessionClient) -> None:
    await api.put("city", "<|im_end|> <<city>>")
    extra = {"semantic": {"output": "out", "defer": True}}
    deferred = await api.openai.completions.create(model=MODEL, prompt="About <<city>> \\<<city>>", extra_body=extra)
    assert deferred.choices[0].text == "<<out>>"
    assert (await api.variable("out"))["state"] == "ready"
    (call,) = (await api.graph())["calls"]
    assert call["inputs"] == ["city"]
    streamed = await api.openai.completions.create(
        model=MODEL, prompt="On: <<out>>", stream=True, extra_body={"semantic": {"output": "more", "defer": True}}
    )
    assert "".join([chunk.choices[0].text async for chunk in streamed if chunk.choices]) == "<<more>>"


@pytest.mark.usefixtures("batch_invariant")
async def test_completions_accept_tokens(api: SessionClient, tokenizer: Any) -> None:
    tokens = tokenizer.encode_template("The capital of France is")
    _, by_tokens = await complete(api.http, prompt=tokens)
    _, by_text = await complete(api.http, prompt="The capital of France is")
    assert by_tokens["choices"] == by_text["choices"]


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"prompt": ""}, "invalid_value", "prompt"),
        ({"prompt": [10**9]}, "invalid_value", "prompt"),
        ({"prompt": "x " * 20_000}, "context_length_exceeded", "prompt"),
        ({"prompt": "<<no>>", "semantic": {"slots": {"a": {}}}}, "unsupported_with_semantic", "semantic.slots"),
        ({"prompt": "x", "suffix": "y"}, "unsupported_value", "suffix"),
        ({"prompt": "x", "logprobs": 21}, "invalid_value", "logprobs"),
    ],
)
async def test_completions_refuse(api: SessionClient, body: dict[str, Any], code: str, param: str) -> None:
    status, answer = await complete(api.http, **body)
    assert (status, answer["error"]["code"], answer["error"]["param"]) == (400, code, param)


async def test_an_unknown_name_in_a_completion_is_refused(api: SessionClient) -> None:
    body = {"model": MODEL, "prompt": "<<no>>"}
    async with api.http.post("/v1/completions", json=body, headers={"X-Semantic-Session": api.session}) as response:
        error = (await response.json())["error"]
    assert (response.status, error["code"], error["param"]) == (400, "unknown_variable", "prompt")
