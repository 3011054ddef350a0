"""gateway/api/schema_checks.py: an answer that violates a schema without `strict` is reported."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response

from gateway.api import schema_checks
from gateway.api.services import SERVICES
from gateway.prompts.tool_calls.formats import HERMES
from tests.fakes.in_process_gateway import GatewayClient, ScriptedGateway
from tests.fakes.scripted_server import Behaviour, says
from tests.gateway.api.responses.test_background import ended, events_of
from tests.gateway.api.responses.test_routes import ask, calls

SCHEMA = {
    "type": "object",
    "properties": {"tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": True}},
    "required": ["tags"],
}
VALID, INVALID = '{"tags": ["a", "b"]}', '{"tags": ["a", "a"]}'
SAYS = "tags: uniqueItems: the items are not unique"
IN_A_CALL = f"in a call of tag: {SAYS}"
TAG = {"type": "function", "function": {"name": "tag", "parameters": SCHEMA}}


def form(schema: Any = SCHEMA, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "tags", "schema": schema, **more}}


def text_form(schema: Any = SCHEMA, **more: Any) -> dict[str, Any]:
    return {"format": {"type": "json_schema", "name": "tags", "schema": schema, **more}}


async def chat(client: GatewayClient, path: str = "chat/completions", **body: Any) -> Any:
    prompt = {"messages": [{"role": "user", "content": "Go."}]} if path == "chat/completions" else {"prompt": "Go."}
    async with client.post(f"/v1/{path}", json={"model": "fake", **prompt, **body}) as answer:
        assert answer.status == 200, await answer.text()
        if not body.get("stream"):
            told = await answer.json()
            return [choice.get("schema_violation") for choice in told["choices"]], told
        lines = (await answer.text()).splitlines()
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert not any("schema_violation" in choice for choice in choices if choice["finish_reason"] is None)
    last = sorted((one for one in choices if one["finish_reason"]), key=lambda one: int(one["index"]))
    return [choice.get("schema_violation") for choice in last], chunks


async def violations(client: GatewayClient) -> float:
    async with client.get("/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("myna_schema_violations_total ")))


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_chat_completion_reports_where_its_answer_violates_the_schema(
    scripted_gateway: ScriptedGateway, streamed: bool
) -> None:
    client, server, _ = scripted_gateway
    before = await violations(client)
    for text, expected in ((INVALID, SAYS), (VALID, None)):
        server.script = [says(text[:9], text[9:])]
        found, told = await chat(client, response_format=form(), stream=streamed)
        assert found == [expected]
        assert ("schema_violation" in json.dumps(told)) == (expected is not None)
        for one in told if streamed else [told]:
            (ChatCompletionChunk if streamed else ChatCompletion).model_validate(one)
    assert await violations(client) == before + 1


@pytest.mark.parametrize("streamed", [False, True])
async def test_each_of_several_answers_is_checked(scripted_gateway: ScriptedGateway, streamed: bool) -> None:
    client, server, _ = scripted_gateway
    server.script = [says(INVALID), says(VALID), says("[]")]
    found, _ = await chat(client, response_format=form(), n=3, stream=streamed)
    assert sorted(map(str, found)) == ["$: type: the value is not of type object", "None", SAYS]


@pytest.mark.parametrize("streamed", [False, True])
async def test_completions_are_checked(scripted_gateway: ScriptedGateway, streamed: bool) -> None:
    client, server, _ = scripted_gateway
    server.script = [says(INVALID)]
    found, _ = await chat(client, "completions", response_format=form(), echo=True, stream=streamed)
    assert found == [SAYS]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": {"name": "tag"}}])
async def test_arguments_of_a_call_are_checked(scripted_gateway: ScriptedGateway, choice: Any, streamed: bool) -> None:
    client, server, _ = scripted_gateway
    for arguments, expected in ((INVALID, IN_A_CALL), (VALID, None), ("{}", None)):
        server.script = [calls({"name": "tag", "arguments": arguments})]
        found, told = await chat(client, tools=[TAG], tool_choice=choice, stream=streamed)
        missing = 'in a call of tag: $: required: the property "tags" is missing'
        assert found == [missing if arguments == "{}" else expected]
        last = told[-1] if streamed else told
        assert last["choices"][0]["finish_reason"] == "tool_calls"


async def test_the_second_call_is_checked_as_well_and_text_before_it_is_not(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    one = f'{HERMES.begin}{{"name": "tag", "arguments": {{}}}}{HERMES.end}'
    both = one.replace("{}", VALID) + "\n" + one.replace("{}", INVALID)
    server.script = [says("I call.\n" + both)]
    found, told = await chat(client, tools=[TAG], response_format=form(True))
    assert (found, len(told["choices"][0]["message"]["tool_calls"])) == ([IN_A_CALL], 2)
    server.script = [says("I do not call.")]
    assert (await chat(client, tools=[TAG]))[0] == [None]


STRICT = {
    "type": "object",
    "properties": {"tags": {"type": "array", "items": {"type": "string"}}},
    "required": ["tags"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("text", "finish", "body"),
    [
        # with strict, the schema is enforced
        ("[]", "stop", {"response_format": form(STRICT, strict=True)}),
        ("[]", "stop", {"structured_outputs": {"json": STRICT}}),
        # answers that are not complete
        (INVALID[:-1], "length", {"response_format": form()}),
        (INVALID, "length", {"response_format": form()}),
        (INVALID[:-1], "stop", {"response_format": form(), "stop": "}"}),
        ("12", "stop", {"response_format": form({"type": "string"}), "stop": ["3"]}),
        # requests without a schema
        (INVALID, "stop", {}),
        (INVALID, "stop", {"response_format": {"type": "json_object"}}),
        (INVALID, "stop", {"response_format": form(True)}),
        (INVALID, "stop", {"tools": [TAG]}),
        # what cannot be checked
        (INVALID, "stop", {"response_format": form({"type": "object", "$ref": "https://example.com/s.json"})}),
        ("[" * 300 + "]" * 300, "stop", {"response_format": form()}),
        ("1" * 5_000, "stop", {"response_format": form()}),
        (INVALID, "stop", {"response_format": form(), "semantic": {"transform": {"strip": True}}}),
    ],
)
async def test_answers_that_are_not_reported(
    scripted_gateway: ScriptedGateway, text: str, finish: str, body: dict[str, Any]
) -> None:
    client, server, _ = scripted_gateway
    server.always = says(text, finish=finish)
    for streamed in (False, True):
        found, told = await chat(client, **body, stream=streamed)
        assert found == [None]
        assert "schema_violation" not in json.dumps(told)


async def test_a_strict_tool_is_not_checked(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    strict = {"type": "function", "function": {"name": "tag", "parameters": STRICT, "strict": True}}
    server.script = [calls({"name": "tag", "arguments": "{}"})]
    assert (await chat(client, tools=[strict]))[0] == [None]


async def test_text_that_is_not_json_violates_every_schema(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    for stop, expected in ((None, "$: the text is not JSON"), ("x", None)):
        server.script = [says("```json\n{}\n```")]
        body = {} if stop is None else {"stop": stop}
        assert (await chat(client, response_format=form(), **body))[0] == [expected]


# large checks


def large(count: int = 3_000) -> tuple[dict[str, Any], str]:
    """Return a schema and an answer that are checked in a thread."""
    item = {"type": "object", "properties": {"a": {"type": "integer"}}}
    return {"type": "array", "items": item, "uniqueItems": True}, json.dumps(
        [{"a": at % (count - 1)} for at in range(count)]
    )


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_large_answer_is_checked_in_a_thread_in_turn(scripted_gateway: ScriptedGateway, streamed: bool) -> None:
    client, server, _ = scripted_gateway
    schema, text = large()
    gate = client.app[SERVICES].schema_check_gate  # type: ignore[union-attr]
    server.always = says(text)
    async with gate.turn("other"):
        asking = asyncio.ensure_future(chat(client, response_format=form(schema), n=2, stream=streamed))
        done, _ = await asyncio.wait([asking], timeout=0.5)
        assert not done, "another key's check goes first"
    found, _ = await asking
    assert found == ["$: uniqueItems: the items are not unique"] * 2


async def test_other_answers_continue_while_one_is_checked(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    schema, text = large()
    gate = client.app[SERVICES].schema_check_gate  # type: ignore[union-attr]
    go_on = asyncio.Event()

    async def later(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await go_on.wait()
        return await says("[", "]")(request, body)

    server.script = [says(text), later]
    body = {"model": "fake", "messages": [{"role": "user", "content": "Go."}], "n": 2, "stream": True}
    async with gate.turn("other"):
        answer = await client.post("/v1/chat/completions", json={**body, "response_format": form(schema)})
        told = b""
        async with asyncio.timeout(10):
            while b'"finish_reason":"stop"' not in told:
                told += await answer.content.readany()
                if told.count(b'"a\\":') > 2_000:
                    go_on.set()
    async with asyncio.timeout(10):
        rest = told + await answer.read()
    events = [json.loads(line[6:]) for line in rest.decode().splitlines() if line.startswith("data: {")]
    ends = [choice for event in events for choice in event["choices"] if choice["finish_reason"]]
    assert [choice.get("schema_violation") for choice in ends] == [None, "$: uniqueItems: the items are not unique"]


async def test_a_client_that_leaves_during_a_check(scripted_gateway: ScriptedGateway) -> None:
    client, server, unfinished = scripted_gateway
    schema, text = large()
    gate = client.app[SERVICES].schema_check_gate  # type: ignore[union-attr]
    server.always = says(text)
    async with gate.turn("other"):
        for streamed in (False, True):
            asking = asyncio.ensure_future(chat(client, response_format=form(schema), stream=streamed))
            await asyncio.wait([asking], timeout=0.5)
            asking.cancel()
            await asyncio.wait([asking])
    assert (await chat(client, response_format=form(schema)))[0] == ["$: uniqueItems: the items are not unique"]
    assert unfinished() == 0


async def test_the_answers_of_a_request_share_a_budget(
    scripted_gateway: ScriptedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, server, _ = scripted_gateway
    schema, text = large()
    monkeypatch.setattr(schema_checks, "MAX_STEPS", 20_000)  # enough for one of them
    server.always = says(text)
    found, _ = await chat(client, response_format=form(schema), n=4)
    assert [one is not None for one in found] == [True, False, False, False]


async def test_an_error_of_the_checker_does_not_fail_the_answer(
    scripted_gateway: ScriptedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise KeyError("a fault of our own")

    client, server, _ = scripted_gateway
    monkeypatch.setattr(schema_checks.SchemaChecker, "check", fail)
    server.script = [says(INVALID)]
    assert (await chat(client, response_format=form()))[0] == [None]


# responses


async def streamed_response(client: GatewayClient, **body: Any) -> list[dict[str, Any]]:
    async with client.post("/v1/responses", json={"model": "fake", "input": "Go.", "stream": True, **body}) as answer:
        lines = (await answer.text()).splitlines()
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]


BODIES: list[tuple[dict[str, Any], Callable[[str], Behaviour], str]] = [
    ({"text": text_form()}, says, SAYS),
    (
        {"tools": [{"type": "function", "strict": False, **TAG["function"]}], "tool_choice": "required"},  # type: ignore[dict-item]
        lambda text: calls({"name": "tag", "arguments": text}),
        IN_A_CALL,
    ),
]


@pytest.mark.parametrize(("body", "answers", "expected"), BODIES)
async def test_a_response_reports_a_violation_and_is_stored_with_it(
    scripted_gateway: ScriptedGateway, body: dict[str, Any], answers: Callable[[str], Behaviour], expected: str
) -> None:
    client, server, _ = scripted_gateway
    server.script = [answers(INVALID), answers(VALID)]
    async with client.post("/v1/responses", json={"model": "fake", "input": "Go.", **body}) as answer:
        told = await answer.json()
    Response.model_validate(told)
    assert told["schema_violation"] == expected
    async with client.get(f"/v1/responses/{told['id']}") as kept:
        assert await kept.json() == told
    again = await events_of(client, told["id"])
    assert again[-1].response.schema_violation == expected
    assert not any("schema_violation" in event.to_json() for event in again[:-1])
    assert "schema_violation" not in await ask(client, **body)
    output = told["output"]
    results = [
        {"type": "function_call_output", "call_id": one["call_id"], "output": ""} for one in output if "call_id" in one
    ]
    server.script = [answers(VALID)]
    await ask(client, input=[{"role": "user", "content": "Go."}, *output, *results], **body)


@pytest.mark.parametrize(("body", "answers", "expected"), BODIES)
async def test_a_streamed_response_reports_a_violation_in_its_last_event(
    scripted_gateway: ScriptedGateway, body: dict[str, Any], answers: Callable[[str], Behaviour], expected: str
) -> None:
    client, server, _ = scripted_gateway
    for store in (True, False):
        server.script = [answers(INVALID), answers(VALID)]
        *before, last = await streamed_response(client, store=store, **body)
        assert last["response"]["schema_violation"] == expected
        assert "schema_violation" not in json.dumps(before)
        assert "schema_violation" not in json.dumps(await streamed_response(client, store=store, **body))


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_background_response_reports_a_violation(scripted_gateway: ScriptedGateway, streamed: bool) -> None:
    client, server, _ = scripted_gateway
    server.always = says(INVALID)
    if streamed:
        *_, last = await streamed_response(client, text=text_form(), background=True)
        assert last["response"]["schema_violation"] == SAYS
        return
    told = await ask(client, text=text_form(), background=True)
    assert (await ended(client, told["id"]))["schema_violation"] == SAYS


async def test_a_tool_whose_parameters_can_be_enforced_is_strict(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    tool = {"type": "function", "name": "tag", "parameters": STRICT}
    server.script = [calls({"name": "tag", "arguments": "{}"})]
    assert "schema_violation" not in await ask(client, tools=[tool], tool_choice="required")


async def test_a_large_response_is_checked_in_a_thread(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    schema, text = large()
    server.always = says(text)
    told = await ask(client, text=text_form({"type": "object", "anyOf": [schema, True]}))
    assert told["schema_violation"] == "$: type: the value is not of type object"
    for streamed in (False, True):
        if streamed:
            last = (await streamed_response(client, text=text_form(schema)))[-1]["response"]
        else:
            async with client.post(
                "/v1/responses", json={"model": "fake", "input": "Go.", "text": text_form(schema)}
            ) as answer:
                last = await answer.json()
        assert last["schema_violation"] == "$: uniqueItems: the items are not unique"
