"""gateway/api/anthropic/messages_builder.py: a request is the call of the equivalent chat completion."""

import copy
from typing import Any

import pytest

from compat.anthropic import MessagesRequest
from compat.openai import ChatCompletionRequest
from engine.tokenizer import Tokenizer
from gateway.api.anthropic.messages_builder import MessagesSpecBuilder, chat_of
from gateway.api.openai.chat import ChatSpecBuilder
from gateway.graph.segments import Slot
from gateway.http.json_body import validate
from gateway.prompts.served_models import ServedModel
from gateway.prompts.template_builder import TemplatePromptBuilder

ASKED: list[dict[str, Any]] = [{"role": "user", "content": "Hello"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TOOL = {"name": "f", "description": "d", "input_schema": SCHEMA}
FUNCTION = {"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA, "strict": False}}
FORM = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}


def model(tokenizer: Tokenizer, window: int = 8_192) -> ServedModel:
    return ServedModel("m", window, tokenizer.vocabulary, tokenizer, TemplatePromptBuilder(tokenizer, window))


def spec_of(model: ServedModel, **fields: Any) -> Any:
    body = validate({"model": "m", "max_tokens": 9, "messages": ASKED, **fields}, MessagesRequest)
    return MessagesSpecBuilder(body, chat_of(body), lambda thinking, signature: True).build(model)


@pytest.mark.parametrize(
    ("fields", "chat"),
    [
        ({}, {}),
        ({"system": "s"}, {"messages": [{"role": "system", "content": "s"}, *ASKED]}),
        ({"temperature": 0.5, "top_p": 0.5, "top_k": 3}, {"temperature": 0.5, "top_p": 0.5, "top_k": 3}),
        ({"stop_sequences": ["x", "y"]}, {"stop": ["x", "y"]}),
        ({"tools": [TOOL]}, {"tools": [FUNCTION]}),
        ({"tools": [TOOL], "tool_choice": {"type": "any"}}, {"tools": [FUNCTION], "tool_choice": "required"}),
        (
            {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": False}},
            {
                "tools": [FUNCTION],
                "tool_choice": {"type": "function", "function": {"name": "f"}},
                "parallel_tool_calls": True,
            },
        ),
        (
            {"tools": [{**TOOL, "strict": True}]},
            {"tools": [{"type": "function", "function": {**FUNCTION["function"], "strict": True}}]},  # type: ignore[dict-item]
        ),
        ({"tools": [TOOL], "tool_choice": {"type": "none"}}, {"tools": [FUNCTION], "tool_choice": "none"}),
        ({"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}, {"response_format": FORM}),
        ({"semantic": {"transform": {"strip": True}}}, {"semantic": {"transform": {"strip": True}}}),
        ({"thinking": {"type": "disabled"}}, {"chat_template_kwargs": {"enable_thinking": False}}),
        (
            {"messages": [*ASKED, {"role": "assistant", "content": "It is"}]},
            {"messages": [*ASKED, {"role": "assistant", "content": "It is"}], "continue_final_message": True},
        ),
        (
            {
                "messages": [
                    *ASKED,
                    {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}}]},
                    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "7"}]},
                ]
            },
            {
                "messages": [
                    *ASKED,
                    {"role": "assistant", "tool_calls": [CALL]},
                    {"role": "tool", "tool_call_id": "c", "content": "7"},
                ]
            },
        ),
    ],
)
def test_the_call_is_that_of_the_equivalent_chat_completion(tokenizer: Tokenizer, fields: Any, chat: Any) -> None:
    served = model(tokenizer)
    body = validate({"model": "m", "max_tokens": 9, "messages": ASKED, **copy.deepcopy(chat)}, ChatCompletionRequest)
    expected = ChatSpecBuilder(body, references=False, deferred=False).build(served)
    assert spec_of(served, **fields) == expected


def test_an_answer_fits_into_the_window(tokenizer: Tokenizer) -> None:
    served = model(tokenizer, window=200)
    *prompt, answer = spec_of(served, max_tokens=64_000).segments
    length = sum(segment.length for segment in prompt)
    assert isinstance(answer, Slot)
    assert answer.sampling.max_tokens == 200 - length
    *_, answer = spec_of(served, max_tokens=20).segments
    assert answer.sampling.max_tokens == 20
