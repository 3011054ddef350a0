"""OpenAI's own types: requests to api.openai.com are valid there, and its answers are parsed."""

from collections.abc import Iterable
from typing import Any

import pytest
from openai.types.chat import ChatCompletionChunk, CompletionCreateParams
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming
from pydantic import TypeAdapter

from engine.sampling_params import SamplingParams
from gateway.engines.openai import OpenAIEngine, Upstream, UpstreamConfig
from gateway.engines.openai.stream_parser import AnswerParser
from gateway.engines.protocol import ContextRefused, Urgency
from gateway.graph.segments import Messages, Slot
from gateway.prompts.passthrough_builder import PassthroughPromptBuilder
from gateway.prompts.prompt import ChatInput
from gateway.prompts.tool_calls.tools import Tool, Tools

REQUEST: TypeAdapter[CompletionCreateParams] = TypeAdapter(CompletionCreateParamsStreaming)
KNOWN = CompletionCreateParamsStreaming.__required_keys__ | CompletionCreateParamsStreaming.__optional_keys__
CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": {"a": 1}}}
LOOK = Tools(
    [Tool("look", "Looks.", {"type": "object", "properties": {}}, False, {})], "auto", parallel_tool_calls=False
)
CLOSED = '{"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": false}'
SAMPLINGS = [
    SamplingParams(),
    SamplingParams(
        max_tokens=9,
        temperature=0.5,
        top_p=0.5,
        seed=3,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        logit_bias={5: -1.0},
        stop=("a", "b"),
        logprobs=True,
        top_logprobs=2,
        prediction="perhaps this",
    ),
    SamplingParams(json_schema=CLOSED),
    SamplingParams(json_schema='{"type": "object"}'),
]
CONVERSATIONS: list[tuple[list[dict[str, Any]], dict[str, Any]]] = [
    ([{"role": "system", "content": "s"}, {"role": "user", "content": ["hi", "you"], "name": "ann"}], {}),
    (
        [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": "2", "tool_call_id": "call_1"},
        ],
        {"tools": LOOK},
    ),
]


def request_of(
    messages: list[dict[str, Any]], sampling: SamplingParams, how: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    upstream = Upstream(UpstreamConfig("there", "openai", "https://api.openai.com"), lambda: None)
    prompt = PassthroughPromptBuilder().chat(ChatInput(messages, **how), Slot(None, sampling)).segments[0]
    assert isinstance(prompt, Messages)
    return OpenAIEngine("there", upstream, "m").build_request(
        [prompt], sampling, "a tenant", Urgency(1.0, interactive=True)
    )


def validate_deeply(value: Any) -> None:
    """Visit all of a value, because lazy parts are validated only when they are read."""
    if isinstance(value, dict):
        for item in value.values():
            validate_deeply(item)
    elif isinstance(value, Iterable) and not isinstance(value, str):
        for item in value:
            validate_deeply(item)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize(("messages", "how"), CONVERSATIONS)
def test_requests_are_valid(messages: list[dict[str, Any]], how: dict[str, Any], sampling: SamplingParams) -> None:
    path, body = request_of(messages, sampling, how)
    assert path == "/v1/chat/completions"
    assert body.keys() <= KNOWN
    validate_deeply(REQUEST.validate_python(body))
    assert "max_tokens" not in body, "its newer models reject this field"


def test_parameters_that_openai_lacks_are_rejected_by_name() -> None:
    for sampling, what in ((SamplingParams(top_k=3), "top_k"), (SamplingParams(regex="a"), "regex")):
        with pytest.raises(ContextRefused, match=what):
            request_of(CONVERSATIONS[0][0], sampling, {})


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> ChatCompletionChunk:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}]
    fields = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices, **more}
    return ChatCompletionChunk.model_validate(fields)


def read(*chunks: ChatCompletionChunk) -> tuple[str, str | None, AnswerParser]:
    answer = AnswerParser(is_streamed=True)
    text, finish = "", None
    for event in chunks:
        for piece, _, ended in answer.feed(b"data: " + event.model_dump_json().encode() + b"\n\n"):
            text, finish = text + piece.text, ended or finish
    return text, finish, answer


def test_answers_are_parsed() -> None:
    usage = {
        "prompt_tokens": 5,
        "completion_tokens": 2,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 3, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "accepted_prediction_tokens": 0},
    }
    text, finish, answer = read(
        chunk({"role": "assistant", "content": "", "refusal": None}, service_tier="default", system_fingerprint="fp"),
        chunk({"content": "hel"}),
        chunk({"content": "lo"}),
        chunk({}, "length"),
        chunk(usage=usage),
    )
    assert (text, finish, answer.usage) == ("hello", "length", (5, 3, 2, 0))


def test_tool_calls_are_parsed() -> None:
    calls = [
        {"index": 0, "id": "call_1", "type": "function", "function": {"name": "look", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"a": '}},
        {"index": 0, "function": {"arguments": "1}"}},
        {"index": 1, "id": "call_2", "type": "function", "function": {"name": "look", "arguments": "{}"}},
    ]
    text, finish, _ = read(*(chunk({"tool_calls": [call]}) for call in calls), chunk({}, "tool_calls"))
    assert text.count("<tool_call>") == text.count("</tool_call>") == 2
    assert '{"name": "look", "arguments": {"a": 1}}' in text
    assert finish == "stop"


def test_a_tool_call_that_is_cut_off_gets_no_end() -> None:
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"a": "b'}}
    text, finish, _ = read(chunk({"tool_calls": [call]}), chunk({}, "length"))
    assert text.endswith('"arguments": {"a": "b')
    assert finish == "length"
