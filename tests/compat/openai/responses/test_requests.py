"""compat/openai/responses/requests.py: requests of the Responses API, valid and invalid ones."""

from typing import Any

import pytest
from pydantic import ValidationError

from compat.openai import NamedTool
from compat.openai.responses import ResponseRequest
from gateway.errors import RequestError
from gateway.http.json_body import validate

VALID: dict[str, Any] = {"model": "m", "input": "x"}
TOOL = {"type": "function", "name": "f"}


@pytest.mark.parametrize("field", sorted(set(ResponseRequest.model_fields) - {"model", "input"}))
def test_every_optional_field_may_be_null(field: str) -> None:
    ResponseRequest.model_validate({**VALID, field: None})


INVALID: list[tuple[dict[str, Any], str | None, str]] = [
    ({"input": []}, "input", "at least 1"),
    ({"input": ""}, "input", "at least 1"),
    ({"input": [{"type": "reasoning", "summary": []}]}, "input", "no message"),
    ({"input": [{"type": "item_reference"}]}, "input.0.id", "required"),
    ({"input": [{"type": "item_reference", "id": ""}]}, "input.0.id", "at least 1"),
    ({"input": [{"type": "item_reference", "id": "x" * 200}]}, "input.0.id", "at most 128"),
    ({"input": [{"type": "spell"}]}, "input.0.type", "compaction or item_reference"),
    ({"input": [{"type": {}}]}, "input.0.type", "compaction or item_reference"),
    ({"input": [3]}, "input.0", "compaction or item_reference"),
    ({"input": [{"type": "custom_tool_call", "call_id": "c", "name": "f"}]}, "input.0.input", "required"),
    ({"input": [{"type": "custom_tool_call_output", "call_id": "c"}]}, "input.0.output", "required"),
    ({"input": [{"type": "custom_tool_call_output", "call_id": 3, "output": ""}]}, "input.0.call_id", "string"),
    ({"input": [{"type": "tool_search_output"}]}, "input.0.tools", "required"),
    ({"input": [{"type": "additional_tools", "tools": [{}]}]}, "input.0.tools.0.type", "must be function"),
    ({"input": [{"type": "compaction", "encrypted_content": "gAAA"}]}, "input.0.encrypted_content", "not made by"),
    ({"input": [{"type": "web_search_call", "id": "ws"}]}, "input", "no message"),
    ({"input": [{"role": "user"}]}, "input.0.content", "required"),
    ({"input": [{"role": "tool", "content": "x"}]}, "input.0.role", "'user'"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0.image_url", "required"),
    (
        {"input": [{"role": "assistant", "content": [{"type": "input_image", "image_url": "x"}]}]},
        "input.0.content",
        "must be text",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]},
        "input.0.content.0.type",
        "Input should be",
    ),
    ({"tools": [TOOL, TOOL]}, "tools", "the same name"),
    (
        {"tools": [{**TOOL, "parameters": {"type": "nothing"}, "strict": True}]},
        "tools.0.parameters",
        "cannot be enforced",
    ),
    ({"tool_choice": "required"}, "tool_choice", "there are no tools"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice", "'g'"),
    ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema", "a name and a schema"),
    ({"text": {"format": {"type": "text", "schema": {}}}}, "text.format.schema", "schema needs"),
    (
        {"text": {"format": {"type": "json_object"}}, "structured_outputs": {"regex": "a"}},
        "structured_outputs",
        "only one of",
    ),
    ({"text": {"verbosity": "loud"}}, "text.verbosity", "'low'"),
    ({"reasoning": {"effort": 3}}, "reasoning.effort", "string"),
    ({"reasoning": {"summary": "long"}}, "reasoning.summary", "'auto'"),
    ({"conversation": "c", "previous_response_id": "r"}, "conversation", "only one of"),
    ({"conversation": {}}, "conversation.id", "required"),
    ({"client_metadata": {"a": 3}}, "client_metadata.a", "string"),
    ({"include": ["everything"]}, "include.0", "reasoning.encrypted_content"),
    ({"reasoning": {"context": "none"}}, "reasoning.context", "'auto'"),
    ({"background": True, "store": False}, "background", "background needs store"),
    ({"background": "yes"}, "background", "boolean"),
    ({"truncation": "middle"}, "truncation", "'disabled'"),
    ({"top_logprobs": 2}, "top_logprobs", "in include"),
    ({"stream_options": {"include_obfuscation": False}}, "stream_options", "needs stream"),
    ({"min_tokens": 5, "max_output_tokens": 4}, "min_tokens", "at most 4"),
    ({"max_tokens": 4}, "max_tokens", "not supported"),
    ({"messages": []}, "messages", "not supported"),
]


@pytest.mark.parametrize(("fields", "param", "message"), INVALID)
def test_an_error_names_the_path_of_an_invalid_field(fields: dict[str, Any], param: str | None, message: str) -> None:
    with pytest.raises(RequestError) as refused:
        validate({**VALID, **fields}, ResponseRequest)
    assert (refused.value.status, refused.value.param) == (400, param)
    assert message in str(refused.value)


def test_numbers_must_be_numbers() -> None:
    for value in (float("nan"), "1", True):
        with pytest.raises(ValidationError):
            ResponseRequest.model_validate({**VALID, "temperature": value})


def test_a_response_request_has_an_equivalent_chat_completion() -> None:
    fields: dict[str, Any] = {
        "max_output_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 3,
        "stop": ["a"],
        "logit_bias": {"5": -1.0},
        "presence_penalty": 0.5,
        "cache_salt": "s",
        "tools": [TOOL, {**TOOL, "name": "g", "strict": False}],
        "tool_choice": {"type": "function", "name": "g"},
        "parallel_tool_calls": True,
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object", "properties": {}}}},
        "semantic": {"output": "o"},
    }
    chat = ResponseRequest.model_validate({**VALID, **fields}).chat
    assert chat.token_limit == 9
    unchanged = (
        "temperature",
        "top_p",
        "seed",
        "stop",
        "logit_bias",
        "presence_penalty",
        "cache_salt",
        "parallel_tool_calls",
    )
    assert {name: getattr(chat, name) for name in unchanged} == {name: fields[name] for name in unchanged}
    assert [(tool.function.name, tool.function.strict) for tool in chat.tools or ()] == [("f", True), ("g", False)]
    assert isinstance(chat.tool_choice, NamedTool)
    assert chat.tool_choice.function.name == "g"
    assert (chat.includes_logprobs, chat.top_logprob_count) == (True, 2)
    assert '"additionalProperties": false' in (chat.output_constraint.json_schema or "")
    assert chat.semantic is not None
    assert chat.semantic.output == "o"
