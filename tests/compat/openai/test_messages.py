"""compat/openai/messages.py: clients can send back a message of an answer unchanged."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compat.openai import (
    CustomCall,
    CustomToolCallAnswer,
    FunctionCall,
    Message,
    ResponseMessage,
    ToolCallAnswer,
    ToolCallDelta,
)

TEXTS = st.text(max_size=12)
ARGUMENTS = TEXTS | st.just("") | st.dictionaries(TEXTS, st.integers() | TEXTS, max_size=3).map(json.dumps)
CALLS = st.builds(ToolCallAnswer, id=TEXTS, function=st.builds(FunctionCall, name=TEXTS, arguments=ARGUMENTS))
REASONING = TEXTS | st.just(msgspec.UNSET)
MESSAGES = st.builds(ResponseMessage, content=TEXTS, reasoning=REASONING, reasoning_content=REASONING) | st.builds(
    ResponseMessage, content=st.none() | TEXTS, tool_calls=st.lists(CALLS, min_size=1, max_size=3)
)


@given(MESSAGES)
def test_messages_are_accepted(answer: ResponseMessage) -> None:
    message = Message.model_validate(msgspec.to_builtins(answer))
    assert message.content == answer.content
    calls = () if isinstance(answer.tool_calls, msgspec.UnsetType) else answer.tool_calls
    assert [(call.id, call.function.name, call.function.arguments) for call in message.tool_calls or ()] == [
        (call.id, call.function.name, call.function.arguments) for call in calls
    ]


@given(st.lists(st.builds(FunctionCall, name=TEXTS, arguments=ARGUMENTS), min_size=1, max_size=3), TEXTS)
def test_messages_joined_from_deltas_are_accepted(functions: list[FunctionCall], id: str) -> None:
    entries = [ToolCallDelta(index, function, id, "function") for index, function in enumerate(functions)]
    message = {"role": "assistant", "content": "", "tool_calls": msgspec.to_builtins(entries)}
    assert [call.index for call in Message.model_validate(message).tool_calls or ()] == list(range(len(functions)))


@given(TEXTS, TEXTS, TEXTS)
def test_calls_of_custom_tools_are_accepted(id: str, name: str, input: str) -> None:
    call = CustomToolCallAnswer(id, CustomCall(name, input))
    delta = ToolCallDelta(0, id=id, type="custom", custom=CustomCall(name, input))
    for entry in (call, delta):
        answer = {"role": "assistant", "content": None, "tool_calls": [msgspec.to_builtins(entry)]}
        (converted,) = Message.model_validate(answer).template_tool_calls
        assert converted == {
            "id": id,
            "type": "function",
            "function": {"name": name, "arguments": {"input": input}},
        }


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"refusal": "No."}, "No."),
        ({"content": [{"type": "refusal", "refusal": "No."}]}, ["No."]),
        ({"content": "Yes.", "annotations": [{"type": "url_citation"}], "parsed": {"a": 1}}, "Yes."),
    ],
)
def test_other_fields_of_openais_answers_are_accepted(fields: dict[str, Any], text: Any) -> None:
    message = Message.model_validate(
        {"role": "assistant", "content": None, "audio": None, "function_call": None} | fields
    )
    assert message.parts == text
    assert message.length == len("".join(text))


@given(ARGUMENTS)
def test_arguments_become_objects_or_remain_text(arguments: str) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    (converted,) = Message.model_validate({"role": "assistant", "tool_calls": [call]}).template_tool_calls
    parsed = converted["function"]["arguments"]
    assert isinstance(parsed, dict) or parsed == arguments
    if isinstance(parsed, dict):
        assert parsed == json.loads(arguments or "{}")


@pytest.mark.parametrize("arguments", ["[" * 100_000, "1" * 5_000, '{"a": ' + "1" * 5_000 + "}"])
def test_arguments_that_python_cannot_parse_remain_text(arguments: str) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    (converted,) = Message.model_validate({"role": "assistant", "tool_calls": [call]}).template_tool_calls
    assert converted["function"]["arguments"] == arguments


def test_templates_read_one_name_of_each_field() -> None:
    message = Message.model_validate({"role": "developer", "content": "Be brief.", "name": "me"})
    assert message.template_fields == {"role": "system", "content": "Be brief.", "name": "me"}
    message = Message.model_validate({"role": "assistant", "refusal": "No.", "reasoning": "I think."})
    assert message.template_fields == {"role": "assistant", "content": "No.", "reasoning_content": "I think."}
