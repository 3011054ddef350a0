"""POST /v1/responses on a running model, through the SDK and LangChain. Answers equal those of chat completions."""

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai import OpenAI
from pydantic import BaseModel, Field

from engine import EngineConfig
from engine.config import default_cache
from engine.models.fetch import checkpoint_folder
from tests.e2e.session_client import SessionClient
from tests.fakes.gateway_harness import MODEL, GatewayHarness

WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather in a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"]},
}


class City(BaseModel):
    name: str = Field(max_length=10)
    people: int = Field(ge=0, le=50_000_000)


@pytest.fixture(scope="module")
def client(server: GatewayHarness) -> OpenAI:
    return server.client()


def respond(client: OpenAI, input: Any = "Name a river.", **options: Any) -> Any:
    options.setdefault("max_output_tokens", 12)
    options.setdefault("temperature", 0)
    return client.responses.create(model=MODEL, input=input, **options)


def chat(client: OpenAI, messages: Any, **options: Any) -> Any:
    return client.chat.completions.create(model=MODEL, messages=messages, max_tokens=12, temperature=0, **options)


@pytest.mark.usefixtures("batch_invariant")
def test_a_response_equals_a_chat_completion(client: OpenAI) -> None:
    conversation: Any = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Name a river."},
        {"role": "assistant", "content": "The Rhine."},
        {"role": "user", "content": "Another?"},
    ]
    expected = chat(client, conversation)
    answer = respond(client, conversation[1:], instructions="Be short.")
    assert answer.output_text == expected.choices[0].message.content
    assert answer.usage.input_tokens == expected.usage.prompt_tokens
    assert answer.usage.output_tokens == expected.usage.completion_tokens
    with client.responses.stream(model=MODEL, input=conversation, max_output_tokens=12, temperature=0) as stream:
        events = list(stream)
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == answer.output_text
    assert events[-1].response.output_text == answer.output_text


@pytest.mark.usefixtures("batch_invariant")
def test_continuing_by_id_equals_sending_the_whole_conversation(client: OpenAI) -> None:
    first = respond(client, "Name a river.")
    by_id = respond(client, "Another?", previous_response_id=first.id)
    by_hand = respond(
        client, [{"role": "user", "content": "Name a river."}, *first.output, {"role": "user", "content": "Another?"}]
    )
    assert by_id.output_text == by_hand.output_text
    assert by_id.usage.input_tokens == by_hand.usage.input_tokens > first.usage.total_tokens
    assert by_id.usage.input_tokens_details.cached_tokens > 0
    assert client.responses.retrieve(by_id.id).output_text == by_id.output_text


def test_a_format_constrains_the_text(client: OpenAI) -> None:
    parsed = client.responses.parse(
        model=MODEL, input="Describe Paris.", text_format=City, max_output_tokens=64, temperature=0
    )
    assert isinstance(parsed.output_parsed, City)
    loose = respond(client, text={"format": {"type": "json_object"}}, max_output_tokens=40)
    assert loose.status == "incomplete" or isinstance(json.loads(loose.output_text), dict)
    exact = respond(client, extra_body={"structured_outputs": {"regex": "(Rhine|Po)"}})
    assert exact.output_text in ("Rhine", "Po")


@pytest.mark.usefixtures("batch_invariant")
def test_a_tool_is_called_and_its_output_is_accepted(client: OpenAI) -> None:
    options: Any = {"tools": [WEATHER], "max_output_tokens": 40}
    question = [{"role": "user", "content": "What is the weather in Paris?"}]
    first = respond(client, question, tool_choice="required", **options)
    (call,) = first.output
    assert call.type == "function_call"
    assert json.loads(call.arguments).keys() == {"city"}
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    by_id = respond(client, [output], previous_response_id=first.id, **options)
    by_hand = respond(client, [*question, call, output], **options)
    assert by_id.output_text == by_hand.output_text != ""
    events = list(
        client.responses.create(
            model=MODEL,
            input=question,
            tool_choice={"type": "function", "name": "get_weather"},
            temperature=0,
            stream=True,
            **options,
        )
    )
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == call.arguments


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # the package serializes parsed objects
def test_objects_of_the_packages_helpers_can_be_sent_back(client: OpenAI) -> None:
    question: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
    options: Any = {"model": MODEL, "input": question, "max_output_tokens": 64, "temperature": 0}
    strict: Any = {**WEATHER, "strict": True, "parameters": {**WEATHER["parameters"], "additionalProperties": False}}
    called: Any = {"tools": [strict], "tool_choice": "required"}
    with client.responses.stream(**options, **called) as stream:
        streamed: Any = stream.get_final_response()
    answers: list[Any] = [client.responses.parse(text_format=City, **options), streamed]
    answers.append(client.responses.parse(**options, **called))
    assert answers[0].output_parsed is not None
    assert answers[2].output[0].parsed_arguments is not None
    for answer in answers:
        calls = [item.call_id for item in answer.output if item.type == "function_call"]
        results = [{"type": "function_call_output", "call_id": id, "output": "rain"} for id in calls]
        assert respond(client, [*question, *answer.output, *results]).status in ("completed", "incomplete")


def test_log_probabilities_equal_those_of_a_chat_completion(client: OpenAI) -> None:
    expected = chat(client, [{"role": "user", "content": "Name a river."}], logprobs=True, top_logprobs=2)
    options: Any = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    (part,) = respond(client, **options).output[0].content
    tokens = [(entry.token, [top.token for top in entry.top_logprobs]) for entry in part.logprobs]
    content = expected.choices[0].logprobs.content
    assert tokens == [(entry.token, [top.token for top in entry.top_logprobs]) for entry in content]
    events = list(respond(client, stream=True, **options))
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    streamed = [entry.token for event in deltas for entry in event.logprobs]
    assert streamed == [token for token, _ in tokens]


async def test_responses_read_and_produce_variables(api: SessionClient) -> None:
    first = await api.openai.responses.create(
        model=MODEL,
        input="Name three animals.",
        max_output_tokens=12,
        temperature=0,
        extra_body={"semantic": {"output": "animals", "defer": True}},
    )
    assert first.output_text == "<<animals>>"
    slots = {"best": {"max_tokens": 3}, "why": {"max_tokens": 5}}
    items: Any = [
        {"role": "user", "content": f"Which is best? {first.output_text}"},
        {"role": "assistant", "content": "It is <<best>>, because <<why>>."},
    ]
    second = await api.openai.responses.create(
        model=MODEL, input=items, temperature=0, extra_body={"semantic": {"slots": slots}}
    )
    values = second.semantic["variables"]  # type: ignore[attr-defined]
    assert second.output_text == f"It is {values['best']}, because {values['why']}."
    await api.openai.responses.create(
        model=MODEL, input="And then?", previous_response_id=second.id, max_output_tokens=3, temperature=0
    )
    *_, last = (await api.graph())["calls"]
    assert last["inputs"] == ["animals"], "earlier answers are not places for slots"


async def test_a_response_can_run_in_the_background(api: SessionClient) -> None:
    fields: Any = {"model": MODEL, "input": "Name three animals.", "max_output_tokens": 16, "temperature": 0}
    expected = await api.openai.responses.create(**fields)
    begun = await api.openai.responses.create(**fields, background=True)
    while begun.status in ("queued", "in_progress"):
        begun = await api.openai.responses.retrieve(begun.id)
        await asyncio.sleep(0.01)
    assert (begun.status, begun.output_text) == (expected.status, expected.output_text)
    text, last, id = "", -1, ""
    async for event in await api.openai.responses.create(**fields, background=True, stream=True):
        last = event.sequence_number
        if event.type == "response.created":
            id = event.response.id
        if event.type == "response.output_text.delta":
            text += event.delta
            break  # the connection is lost
    async for event in await api.openai.responses.retrieve(id, stream=True, starting_after=last):
        assert event.sequence_number == last + 1
        last = event.sequence_number
        if event.type == "response.output_text.delta":
            text += event.delta
    assert event.type == f"response.{expected.status}"
    assert text == event.response.output_text == expected.output_text
    items = await api.openai.responses.input_items.list(id)
    assert [item.to_dict()["content"][0]["text"] for item in items.data] == ["Name three animals."]
    assert (await api.openai.responses.cancel(id)).status == expected.status, "too late"


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayHarness]:
    """Yield a server of the default model with a template that supports reasoning."""
    folder = tmp_path_factory.mktemp("models") / "thinking"
    folder.mkdir()
    for file in checkpoint_folder(EngineConfig().model, Path(default_cache()), torch.bfloat16).iterdir():
        (folder / file.name).symlink_to(file)
    config = folder / "tokenizer_config.json"
    form_fields = json.loads(config.read_text())
    form_fields["chat_template"] = "{% for m in messages %}{{ m.content }}\n{% endfor %}{# <think></think> #}"
    config.unlink()
    config.write_text(json.dumps(form_fields))
    with GatewayHarness("--model", str(folder), "--kv-tokens", "2048", "--journal", "memory") as server:
        yield server


TURN = 'Question: What is {a} + {b}?\n<think>\nI add {a} and {b}, which is {c}.\n</think>\n\n{{"sum": {c}}}\n\n'
QUESTION = "".join(TURN.format(a=a, b=b, c=a + b) for a, b in ((2, 2), (3, 4), (1, 5), (4, 4)))
QUESTION += "Question: What is 3 + 3?"
SUM = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"], "additionalProperties": False}


def test_reasoning_precedes_a_constrained_answer(thinking: GatewayHarness) -> None:
    form_fields: Any = {"name": "sum", "schema": SUM, "strict": True}
    with thinking.client() as client:
        answer = client.chat.completions.create(
            model="thinking",
            messages=[{"role": "user", "content": QUESTION}],
            max_tokens=60,
            temperature=0,
            response_format={"type": "json_schema", "json_schema": form_fields},
        )
        message: Any = answer.choices[0].message
        assert message.content == '{"sum": 6}'
        assert message.reasoning_content == "I add 3 and 3, which is 6."
        assert answer.usage is not None
        details: Any = answer.usage.completion_tokens_details
        assert len(["I", "add", "3", "and", "3"]) < details.reasoning_tokens < answer.usage.completion_tokens
        fields: Any = {"model": "thinking", "input": QUESTION, "max_output_tokens": 60, "temperature": 0}
        form = {"format": {"type": "json_schema", **form_fields}}
        events: Any = list(client.responses.create(**fields, text=form, stream=True))
        thought, said = events[-1].response.output
        assert (thought.content[0].text, said.content[0].text) == (message.reasoning_content, message.content)
        deltas = [event.delta for event in events if event.type == "response.reasoning_text.delta"]
        assert "".join(deltas) == message.reasoning_content
        body = {
            "semantic": {"output": "a", "session": "s"},
            "response_format": {"type": "json_schema", "json_schema": form_fields},
        }
        client.post("/sessions", body={"id": "s"}, cast_to=object)
        client.chat.completions.create(
            model="thinking",
            messages=[{"role": "user", "content": QUESTION}],
            max_tokens=60,
            temperature=0,
            extra_body=body,
        )
        value: Any = client.get("/sessions/s/variables/a", cast_to=object)
        assert value["value"] == '{"sum": 6}'


@tool
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@pytest.mark.parametrize("by_id", [False, True])
def test_langchain_uses_the_responses_api(server: GatewayHarness, by_id: bool) -> None:
    options: Any = {"use_responses_api": True, "use_previous_response_id": by_id, "max_completion_tokens": 24}
    model = ChatOpenAI(base_url=f"{server.address}/v1", api_key="none", model=MODEL, temperature=0, **options)
    first = HumanMessage("Add 1 and 2.")
    called: Any = model.bind_tools([add], tool_choice="add").invoke([first])
    (call,) = called.tool_calls
    assert {type(value) for value in call["args"].values()} == {int}
    messages = [first, called, ToolMessage(str(add.invoke(call["args"])), tool_call_id=call["id"])]
    answer = model.invoke(messages)
    assert answer.text
    assert answer.usage_metadata is not None
    pieces = list(model.stream([first]))
    assert len([piece for piece in pieces if piece.text]) > 1


PATCH_GRAMMAR = (
    'start: begin line+ end\nbegin: "BEGIN" LF\nend: "END"\nline: ("+" | "-") /[a-z ]{1,12}/ LF\n%import common.LF\n'
)
CUSTOM: Any = {
    "type": "custom",
    "name": "edit",
    "description": "Edit the file.",
    "format": {"type": "grammar", "syntax": "lark", "definition": PATCH_GRAMMAR},
}


@pytest.mark.slow
def test_the_input_of_a_custom_tool_matches_its_grammar(client: OpenAI) -> None:
    forced: Any = {"type": "custom", "name": "edit"}
    options: Any = {"tools": [CUSTOM, WEATHER], "tool_choice": forced, "max_output_tokens": 400, "temperature": 0}
    question: Any = [{"role": "user", "content": "Add the line hello to the file."}]
    answer = client.responses.create(model=MODEL, input=question, **options)
    (call,) = answer.output
    assert call.type == "custom_tool_call"
    assert call.name == "edit"
    complete = re.fullmatch(r"BEGIN\n(?:[+-][a-z ]{1,12}\n)+END", call.input)
    assert complete or answer.status == "incomplete", call.input
    assert re.match(r"BEGIN\n[+-][a-z ]", call.input), call.input
    events = list(client.responses.create(model=MODEL, input=question, stream=True, **options))
    deltas = [event.delta for event in events if event.type == "response.custom_tool_call_input.delta"]
    assert "".join(deltas) == call.input
    output: Any = {"type": "custom_tool_call_output", "call_id": call.call_id, "output": "done"}
    if answer.status == "completed":
        assert respond(client, [*question, call.to_dict(), output], tools=[CUSTOM]).status in (
            "completed",
            "incomplete",
        )


def test_the_input_of_a_custom_tool_matches_its_pattern(client: OpenAI) -> None:
    tool: Any = {**CUSTOM, "format": {"type": "grammar", "syntax": "regex", "definition": r"move [a-h][1-8]\n"}}
    answer = respond(client, tools=[tool], tool_choice="required", max_output_tokens=60)
    (call,) = answer.output
    assert call.type == "custom_tool_call"
    assert re.fullmatch(r"move [a-h][1-8]\n", call.input)


def test_tools_of_a_namespace_are_called(client: OpenAI) -> None:
    namespace: Any = {"type": "namespace", "name": "mcp__city", "description": "About cities.", "tools": [WEATHER]}
    chosen: Any = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "namespace", "name": "mcp__city"}]}
    other: Any = {"type": "function", "name": "other", "parameters": {"type": "object", "properties": {}}}
    hosted: Any = {"type": "web_search"}
    answer = respond(client, tools=[other, namespace, hosted], tool_choice=chosen, max_output_tokens=60)
    (call,) = answer.output
    assert (call.type, call.name, call.namespace) == ("function_call", "get_weather", "mcp__city")
    assert json.loads(call.arguments).keys() == {"city"}


@pytest.mark.slow
def test_input_tokens_are_those_of_the_prompt(client: OpenAI) -> None:
    counted = client.responses.input_tokens.count(model=MODEL, input="Name a river.", instructions="Be short.")
    answer = respond(client, instructions="Be short.")
    assert answer.usage.input_tokens == counted.input_tokens
    # this small model may write the longest summary that there can be
    patient = client.with_options(timeout=600)
    compacted = patient.responses.compact(model=MODEL, input="Name a river.")
    items: Any = [item.to_dict() for item in compacted.output]
    assert respond(client, [*items, {"role": "user", "content": "Another?"}]).output_text
