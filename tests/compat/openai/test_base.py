"""compat/openai/base.py: in all requests a null counts as omitted, and an error names the invalid field."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from compat.openai import REFUSED, ChatCompletionRequest, CompletionRequest
from compat.openai.responses import ResponseRequest
from compat.openai.semantic import SessionRequest, VariableRequest
from gateway.errors import RequestError
from gateway.http.json_body import validate

FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": False}
CHAT: dict[str, Any] = {
    "model": "m",
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "x"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c", "content": "y"},
    ],
    "tools": [{"type": "function", "function": FUNCTION}],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
    "prediction": {"type": "content", "content": [{"type": "text", "text": "x"}]},
    "stream": True,
    "stream_options": {"include_usage": True},
    "semantic": {"session": "s", "transform": {"strip": True}, "slots": {"a": {"transform": {"line": 1}}}},
}
COMPLETION: dict[str, Any] = {"model": "m", "prompt": "x", "structured_outputs": {"regex": "a"}, "semantic": {}}
RESPONSE: dict[str, Any] = {
    "model": "m",
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "x"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "x"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "y"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "x"}]},
    ],
    "tools": [{"type": "function", **FUNCTION}],
    "tool_choice": {"type": "function", "name": "f"},
    "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
    "reasoning": {"effort": "low"},
    "stream": True,
    "stream_options": {"include_obfuscation": True},
    "semantic": {"session": "s"},
}
REQUESTS: list[tuple[type[BaseModel], dict[str, Any]]] = [
    (ChatCompletionRequest, CHAT),
    (CompletionRequest, COMPLETION),
    (ResponseRequest, RESPONSE),
]
FIELDS = {name for schema, _ in REQUESTS for name in schema.model_fields}
FREE = {"parameters", "schema", "slots"}
"""Objects in these requests whose members are not fields."""


def objects(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the paths of all objects that have fields."""
    if isinstance(value, dict):
        if not path or path[-1] not in FREE:
            yield path
        if path and path[-1] in ("parameters", "schema"):
            return
        for name, inner in value.items():
            yield from objects(inner, (*path, name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from objects(inner, (*path, index))


def changed(body: dict[str, Any], path: tuple[Any, ...], **fields: Any) -> dict[str, Any]:
    """Return the body with fields set in the object at a path."""
    body = copy.deepcopy(body)
    inner: Any = body
    for step in path:
        inner = inner[step]
    for name, value in fields.items():
        inner[name] = value
    return body


PLACES = [
    pytest.param(schema, body, path, id=f"{schema.__name__}: {'.'.join(map(str, path))}")
    for schema, body in REQUESTS
    for path in objects(body)
]


@pytest.mark.parametrize(("schema", "body"), REQUESTS)
def test_null_counts_as_omitted(schema: type[BaseModel], body: dict[str, Any]) -> None:
    expected = validate(body, schema)
    for name in sorted({*REFUSED, *FIELDS, "unheard_of"} - set(body)):
        assert validate({**body, name: None}, schema).model_dump() == expected.model_dump(), name


@pytest.mark.parametrize(("schema", "body", "path"), PLACES)
def test_null_counts_as_omitted_anywhere_in_a_request(
    schema: type[BaseModel], body: dict[str, Any], path: tuple[Any, ...]
) -> None:
    nulls: dict[str, Any] = dict.fromkeys(("unheard_of", "cache_control", "audio"))
    assert validate(changed(body, path, **nulls), schema) == validate(body, schema)


@pytest.mark.parametrize(("schema", "body", "path"), PLACES)
def test_an_error_names_the_path_of_an_unknown_field(
    schema: type[BaseModel], body: dict[str, Any], path: tuple[Any, ...]
) -> None:
    # names of a union's alternatives are not in the path, although the alternative of a text part is `text`
    with pytest.raises(RequestError) as refused:
        validate(changed(body, path, cache_control={"type": "ephemeral"}), schema)
    param = ".".join([*map(str, path), "cache_control"])
    assert (refused.value.param, refused.value.code) == (param, "unsupported_parameter")
    assert param in str(refused.value)


@pytest.mark.parametrize(("schema", "body"), REQUESTS)
def test_an_error_names_the_field_of_an_invalid_value(schema: type[BaseModel], body: dict[str, Any]) -> None:
    for name in schema.model_fields:
        with pytest.raises(RequestError) as refused:
            validate({**body, name: [[["invalid"]]]}, schema)
        assert (refused.value.param or "").split(".")[0] == name


def test_nulls_that_are_values_are_kept() -> None:
    assert VariableRequest.model_validate({"value": None}).model_fields_set == {"value"}
    assert SessionRequest.model_validate({"metadata": None, "unheard_of": None}) == SessionRequest()
    with pytest.raises(RequestError) as refused:
        validate({"model": None, "prompt": "x"}, CompletionRequest)
    assert refused.value.param == "model"


MESSAGES = {"messages": CHAT["messages"]}
TOOLS = {"tools": CHAT["tools"]}


@pytest.mark.parametrize(
    ("schema", "change", "param"),
    [
        (ChatCompletionRequest, {"max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens"),
        (ChatCompletionRequest, {"min_tokens": 2, "max_tokens": 1}, "min_tokens"),
        (ChatCompletionRequest, {"top_logprobs": 1}, "top_logprobs"),
        (ChatCompletionRequest, {"stream_options": {}}, "stream_options"),
        (ChatCompletionRequest, {"continue_final_message": True}, "continue_final_message"),
        (ChatCompletionRequest, {"tool_choice": "required"}, "tool_choice"),
        (ChatCompletionRequest, {"tools": CHAT["tools"] * 2}, "tools"),
        (
            ChatCompletionRequest,
            {**TOOLS, "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "tool_choice",
        ),
        (ChatCompletionRequest, {"guided_regex": "a", "guided_choice": ["b"]}, "guided_choice"),
        (ChatCompletionRequest, {"guided_regex": "("}, "guided_regex"),
        (ChatCompletionRequest, {"messages": [{"role": "user"}]}, "messages.0.content"),
        (ChatCompletionRequest, {"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id"),
        (ChatCompletionRequest, {"messages": [{"role": "user", "content": "x", "refusal": "n"}]}, "messages.0.refusal"),
        (
            ChatCompletionRequest,
            {"messages": [{**CHAT["messages"][1], "role": "user", "content": "x"}]},
            "messages.0.tool_calls",
        ),
        (
            ChatCompletionRequest,
            {"messages": [{"role": "user", "content": [{"type": "x"}]}]},
            "messages.0.content.0.type",
        ),
        (CompletionRequest, {"best_of": 1, "n": 2}, "best_of"),
        (CompletionRequest, {"echo": True, "logprobs": 1}, "echo"),
    ],
)
def test_an_error_names_a_field_of_a_contradiction(schema: type[BaseModel], change: dict[str, Any], param: str) -> None:
    valid = {"model": "m", "prompt": "x"} if schema is CompletionRequest else {"model": "m", **MESSAGES}
    with pytest.raises(RequestError) as refused:
        validate({**valid, **change}, schema)
    assert (refused.value.status, refused.value.param) == (400, param)


def test_the_number_of_answers_to_one_request_is_limited() -> None:
    body = {"model": "m", "prompt": ["x"] * 64, "n": 16}
    assert validate(body, CompletionRequest).candidate_count == 16
    with pytest.raises(RequestError) as refused:
        validate({**body, "best_of": 17}, CompletionRequest)
    assert refused.value.param == "prompt"
    assert "at most 1024 answers" in str(refused.value)
