"""gateway/engines/anthropic/translation.py: every field becomes its equivalent, or is refused."""

import re
from pathlib import Path
from typing import Any

import pytest
from anthropic.types import MessageParam
from pydantic import TypeAdapter

from engine.sampling_params import SamplingParams
from gateway.engines.anthropic.translation import DEFAULT_LENGTH, RULES, messages_request
from gateway.engines.openai.profiles import ANTHROPIC
from gateway.engines.protocol import ContextRefused
from gateway.graph.segments import Messages

ASKED: dict[str, Any] = {"role": "user", "content": "Hello"}
HELLO = {"role": "user", "content": [{"type": "text", "text": "Hello"}]}
PNG = "data:image/png;base64,iVBORw0KGgo="
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
_MESSAGES: TypeAdapter[Any] = TypeAdapter(list[MessageParam])


def translated(*messages: Any, sampling: SamplingParams | None = None, **fields: Any) -> dict[str, Any]:
    body = messages_request(Messages(list(messages or [ASKED]), fields), sampling or SamplingParams(), ANTHROPIC)
    _MESSAGES.validate_python(body["messages"])
    return body


def refused(*messages: Any, sampling: SamplingParams | None = None, **fields: Any) -> ContextRefused:
    with pytest.raises(ContextRefused, match="an engine of kind anthropic does not support") as error:
        translated(*messages, sampling=sampling, **fields)
    assert error.value.code == "unsupported_by_engine"
    return error.value


def test_a_plain_request() -> None:
    assert translated() == {"messages": [HELLO], "max_tokens": DEFAULT_LENGTH}


def test_a_conversation_with_tools() -> None:
    call = {"id": "call:1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    broken = {"id": "call_2", "type": "function", "function": {"name": "f", "arguments": '{"a'}}
    body = translated(
        {"role": "system", "content": "s"},
        {"role": "developer", "content": "t"},
        ASKED,
        {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [call, broken]},
        {"role": "tool", "tool_call_id": "call:1", "content": "x"},
        {"role": "tool", "tool_call_id": "call_2", "content": ""},
        ASKED,
        {"role": "system", "content": "late"},
    )
    assert body["system"] == [{"type": "text", "text": "s"}, {"type": "text", "text": "t"}]
    assert body["messages"] == [
        HELLO,
        {
            "role": "assistant",
            "content": [
                {"type": "tool_use", "id": "call_1", "name": "f", "input": {"a": 1}},
                {"type": "tool_use", "id": "call_2", "name": "f", "input": {"INVALID_JSON": '{"a'}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "call_1", "content": [{"type": "text", "text": "x"}]},
                {"type": "tool_result", "tool_use_id": "call_2"},
                {"type": "text", "text": "Hello"},
            ],
        },
        {"role": "system", "content": [{"type": "text", "text": "late"}]},
    ]


@pytest.mark.parametrize(
    ("part", "block"),
    [
        (
            {"type": "image_url", "image_url": {"url": PNG, "detail": "low"}},
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}},
        ),
        (
            {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
            {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}},
        ),
        (
            {"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBERi0="}},
            {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}},
        ),
    ],
)
def test_images_and_files(part: Any, block: Any) -> None:
    body = translated({"role": "user", "content": [{"type": "text", "text": "Hello"}, part]})
    assert body["messages"] == [{"role": "user", "content": [{"type": "text", "text": "Hello"}, block]}]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/svg+xml;base64,AA=="}},
        {"type": "image_url", "image_url": 5},
        {"type": "file", "file": {"file_data": "data:text/csv;base64,AA=="}},
        {"type": "file", "file": {"file_id": "f"}},
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
        {"type": "video_url", "video_url": {"url": "https://x/y.mp4"}},
    ],
)
def test_other_media_are_refused(part: Any) -> None:
    refused({"role": "user", "content": [part]})


@pytest.mark.parametrize(
    ("choice", "parallel", "expected"),
    [
        (None, None, None),
        (None, True, None),
        (None, False, {"type": "auto", "disable_parallel_tool_use": True}),
        ("required", None, {"type": "any"}),
        ("required", False, {"type": "any", "disable_parallel_tool_use": True}),
        (
            {"type": "function", "function": {"name": "f"}},
            True,
            {"type": "tool", "name": "f", "disable_parallel_tool_use": False},
        ),
    ],
)
def test_tools_and_their_choice(choice: Any, parallel: bool | None, expected: Any) -> None:
    body = translated(tools=[TOOL], tool_choice=choice, parallel_tool_calls=parallel)
    assert body["tools"] == [{"name": "f", "description": "d", "input_schema": {"type": "object"}}]
    assert body.get("tool_choice") == expected
    strict = {"type": "function", "function": {"name": "f", "strict": True}}
    assert translated(tools=[strict])["tools"] == [{"name": "f", "strict": True, "input_schema": {"type": "object"}}]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"temperature": 0.0}, {"temperature": 0.0}),
        ({"temperature": 1.0, "given": ("temperature",)}, {"temperature": 1.0}),
        ({"top_p": 0.5, "top_k": 3}, {"top_p": 0.5, "top_k": 3}),
        ({"top_p": 0.0}, {"temperature": 0.0}),
        ({"stop": ("a", "b")}, {"stop_sequences": ["a", "b"]}),
        ({"seed": 7, "prediction": "x"}, {}),
        ({"presence_penalty": 0.0, "given": ("presence_penalty",)}, {}),
        (
            {"json_schema": '{"type": "object", "properties": {}}'},
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object", "properties": {}}}}},
        ),
    ],
)
def test_sampling(sampling: Any, expected: Any) -> None:
    body = translated(sampling=SamplingParams(**sampling))
    assert {key: value for key, value in body.items() if key != "messages"} == {
        "max_tokens": DEFAULT_LENGTH,
        **expected,
    }


@pytest.mark.parametrize(
    ("sampling", "field"),
    [
        ({"temperature": 1.5}, "temperature"),
        ({"min_p": 0.1}, "min_p"),
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
        ({"presence_penalty": 1.0}, "presence_penalty"),
        ({"frequency_penalty": 1.0}, "frequency_penalty"),
        ({"logit_bias": {1: 1.0}}, "logit_bias"),
        ({"logprobs": True}, "logprobs"),
        ({"min_tokens": 1}, "min_tokens"),
        ({"stop_token_ids": (1,)}, "stop_token_ids"),
        ({"ignore_eos": True}, "ignore_eos"),
        ({"regex": "a"}, None),
        ({"grammar": "start: /a/"}, None),
        ({"json_schema": '{"type": "object"}'}, "response_format"),
    ],
)
def test_sampling_that_the_api_lacks_is_refused(sampling: Any, field: str | None) -> None:
    assert refused(sampling=SamplingParams(**sampling)).field == field


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"reasoning_effort": "minimal"}, {"output_config": {"effort": "low"}}),
        ({"reasoning_effort": "none"}, {"thinking": {"type": "disabled"}}),
        ({"effort": "max"}, {"output_config": {"effort": "max"}}),
        ({"enable_thinking": True}, {"thinking": {"type": "adaptive"}}),
        ({"enable_thinking": False}, {"thinking": {"type": "disabled"}}),
        ({"cache_control": True}, {"cache_control": {"type": "ephemeral"}}),
        ({"verbosity": "low"}, {}),
    ],
)
def test_hints(fields: Any, expected: Any) -> None:
    body = translated(**fields)
    assert {key: value for key, value in body.items() if key not in ("messages", "max_tokens")} == expected


def test_an_effort_joins_a_format() -> None:
    sampling = SamplingParams(json_schema='{"type": "object", "properties": {}}')
    assert translated(sampling=sampling, reasoning_effort="high")["output_config"].keys() == {"format", "effort"}


@pytest.mark.parametrize("name", ["chat_template_kwargs", "add_generation_prompt"])
def test_fields_of_chat_templates_are_refused(name: str) -> None:
    assert refused(**{name: {"a": 1}}).field == name
    assert refused(reasoning_effort="silly").field == "reasoning_effort"


def test_the_document_has_the_rules() -> None:
    table = re.findall(r"^\| (.+?) \| (.+) \|$", Path("docs/engines.md").read_text(), re.MULTILINE)
    told = {re.sub("`", "", name): rule for name, rule in table}
    for names, rule in RULES.items():
        assert told.get(re.sub("`", "", names)) == rule, f"docs/engines.md: | {names} | {rule} |"
