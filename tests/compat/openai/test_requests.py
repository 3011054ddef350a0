"""Requests of OpenAI's endpoints. tests/e2e/test_chat.py tests errors of single fields."""

from typing import Any

import pytest
from pydantic import ValidationError

from compat.openai import ChatCompletionRequest, Message
from compat.openai.base import MAX_STOPS
from gateway.errors import RequestError
from gateway.http.json_body import validate

VALID: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


def test_content_parts_are_texts() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert Message.model_validate({"role": "user", "content": parts}).parts == ["one", "two"]


@pytest.mark.parametrize("stops", [1, MAX_STOPS, MAX_STOPS + 1])
def test_the_number_of_stop_strings_is_limited(stops: int) -> None:
    body = {**VALID, "stop": ["x"] * stops}
    if stops <= MAX_STOPS:
        assert len(ChatCompletionRequest.model_validate(body).stop or "") == stops
    else:
        with pytest.raises(ValidationError, match=f"at most {MAX_STOPS}"):
            ChatCompletionRequest.model_validate(body)


@pytest.mark.parametrize("field", sorted(set(ChatCompletionRequest.model_fields) - {"model", "messages"}))
def test_every_optional_field_may_be_null(field: str) -> None:
    ChatCompletionRequest.model_validate({**VALID, field: None})


def test_numbers_must_be_numbers() -> None:
    for value in (float("nan"), float("inf"), "1", True):
        with pytest.raises(ValidationError):
            ChatCompletionRequest.model_validate({**VALID, "temperature": value})
    ChatCompletionRequest.model_validate({**VALID, "temperature": 1})


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_min_tokens_must_not_exceed_the_limit(limit: str) -> None:
    with pytest.raises(ValidationError, match="at most 4 tokens"):
        ChatCompletionRequest.model_validate({**VALID, "min_tokens": 5, limit: 4})
    assert ChatCompletionRequest.model_validate({**VALID, "min_tokens": 4, limit: 4}).token_limit == 4
    assert ChatCompletionRequest.model_validate({**VALID, "min_tokens": 5}).token_limit is None


@pytest.mark.parametrize(
    ("content", "length"),
    [
        ("four", 4),
        ([{"type": "text", "text": "four"}, {"type": "text", "text": "and five"}], 12),
        ([], 0),
        (None, 0),
    ],
)
def test_the_length_of_a_message_is_the_length_of_its_texts(content: Any, length: int) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = Message.model_validate({"role": "assistant", "content": content, "tool_calls": [call]})
    assert message.length == length


def allowed(mode: Any, *names: str) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def custom(name: str) -> dict[str, Any]:
    return {"type": "custom", "custom": {"name": name}}


def with_tools(choice: Any) -> dict[str, Any]:
    tools = [*({"type": "function", "function": {"name": name}} for name in ("a", "b", "c")), custom("e")]
    return {"model": "m", "messages": [{"role": "user", "content": "x"}], "tools": tools, "tool_choice": choice}


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_the_model_reads_only_the_allowed_tools(mode: str) -> None:
    body = ChatCompletionRequest.model_validate(with_tools(allowed(mode, "c", "a")))
    assert [tool.function.name for tool in body.tools or ()] == ["a", "c"]
    assert body.tool_choice == mode


@pytest.mark.parametrize(
    ("choice", "param"),
    [
        (allowed("auto", "d"), "tool_choice.allowed_tools.tools.0"),
        (allowed("auto"), "tool_choice.allowed_tools.tools"),
        (allowed("none", "a"), "tool_choice.allowed_tools.mode"),
        (allowed("auto", "e"), "tool_choice.allowed_tools.tools.0"),
        ({"type": "allowed_tools"}, "tool_choice.allowed_tools"),
        (custom("a"), "tool_choice"),
        ({"type": "function", "function": {"name": "e"}}, "tool_choice"),
        ({"type": "custom"}, "tool_choice.custom"),
        (allowed("auto", *["a"] * 513), "tool_choice.allowed_tools.tools"),
    ],
)
def test_an_invalid_choice_of_tools_is_refused(choice: Any, param: str) -> None:
    with pytest.raises(RequestError) as refused:
        validate(with_tools(choice), ChatCompletionRequest)
    assert refused.value.param == param


def test_a_choice_may_name_custom_tools() -> None:
    body = ChatCompletionRequest.model_validate(with_tools(custom("e")))
    assert (body.named_tool, body.custom_tool_names) == ("e", {"e"})
    choice = allowed("required", "b")
    choice["allowed_tools"]["tools"].append(custom("e"))
    body = ChatCompletionRequest.model_validate(with_tools(choice))
    assert [tool.function.name for tool in body.tools or ()] == ["b", "e"]
    assert (body.named_tool, body.tool_choice) == (None, "required")


def test_hints_are_accepted() -> None:
    hints: dict[str, Any] = {
        "store": True,
        "service_tier": "flex",
        "reasoning_effort": "none",
        "verbosity": "low",
        "prompt_cache_retention": "24h",
        "prompt_cache_options": {"mode": "explicit", "ttl": "30m"},
    }
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], **hints}
    assert ChatCompletionRequest.model_validate(body).store
