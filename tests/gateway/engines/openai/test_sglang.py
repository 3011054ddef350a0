"""SGLang's own types: requests to it are valid and keep their meaning, and its answers are parsed.

The tests run where its package can be imported: `pip install --no-deps sglang` (tried with 0.5.23), pybase64, pillow,
starlette, pyzmq, ipython and traitlets are enough, without kernels or a GPU.
"""

import json
from array import array
from collections.abc import Sequence
from typing import Any, cast

import pytest

from engine.sampling_params import SamplingParams
from engine.tokenizer import Tokenizer
from gateway.engines.openai import OpenAIEngine, Upstream, UpstreamConfig
from gateway.engines.openai.stream_parser import AnswerParser
from gateway.engines.protocol import Urgency
from gateway.graph.segments import Messages, Slot
from gateway.prompts.passthrough_builder import PassthroughPromptBuilder
from gateway.prompts.prompt import ChatInput
from gateway.prompts.tool_calls.tools import Tool, Tools

sglang = pytest.importorskip("sglang.srt.entrypoints.openai.protocol")

DEFAULTS = SamplingParams()
EVERYTHING = SamplingParams(
    max_tokens=9,
    temperature=0.5,
    top_p=0.5,
    top_k=3,
    min_p=0.1,
    seed=3,
    repetition_penalty=1.1,
    presence_penalty=0.1,
    frequency_penalty=0.2,
    logit_bias={5: -1.0},
    stop=("a", "b"),
    stop_token_ids=(1, 2),
    min_tokens=2,
    ignore_eos=True,
    skip_special_tokens=False,
    logprobs=True,
    top_logprobs=2,
    regex="a+",
)
SCHEMA = SamplingParams(json_schema='{"type": "object", "properties": {"a": {}}, "required": ["a"]}')
CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": {"a": 1}}}
LOOK = Tools([Tool("look", "Looks.", {"type": "object", "properties": {}}, False, {})], "auto")
CONVERSATIONS: list[tuple[list[dict[str, Any]], dict[str, Any]]] = [
    ([{"role": "system", "content": "s"}, {"role": "user", "content": "hi", "name": "ann"}], {}),
    (
        [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": "2", "tool_call_id": "call_1"},
        ],
        {"tools": LOOK},
    ),
    (
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "I am"}],
        {"continue_final_message": True, "template_options": {"enable_thinking": False}},
    ),
]
IMPLIED = {"add_generation_prompt"}
"""Fields that SGLang does not know, because continuing a message implies them."""


def engine(tokenizer: Tokenizer | None = None) -> OpenAIEngine:
    return OpenAIEngine("there", Upstream(UpstreamConfig("there", "sglang", "http://x"), lambda: None), "m", tokenizer)


def check(openai_engine: OpenAIEngine, tokens: "array[int]", sampling: SamplingParams) -> None:
    path, body = openai_engine.build_request(tokens, sampling, "a tenant", Urgency(12.5, interactive=True))
    kind = sglang.ChatCompletionRequest if path == "/v1/chat/completions" else sglang.CompletionRequest
    request = kind.model_validate(json.loads(json.dumps(body)))
    assert body.keys() - kind.model_fields <= IMPLIED
    understood = request.model_dump()
    plain = {key: value for key, value in body.items() if isinstance(value, int | float | str) and key not in IMPLIED}
    assert {key: understood[key] for key in plain} == plain
    assert {"priority", "cache_salt"} <= plain.keys()


@pytest.mark.parametrize("sampling", [DEFAULTS, EVERYTHING, SCHEMA])
@pytest.mark.parametrize(("messages", "how"), CONVERSATIONS)
def test_chat_requests_are_valid(messages: list[dict[str, Any]], how: dict[str, Any], sampling: SamplingParams) -> None:
    prompt, _ = PassthroughPromptBuilder().chat(ChatInput(messages, **how), Slot(None, sampling)).segments
    check(engine(), [cast("Messages", prompt)], sampling)


@pytest.mark.parametrize("sampling", [DEFAULTS, EVERYTHING, SCHEMA])
def test_completion_requests_are_valid(sampling: SamplingParams) -> None:
    check(engine(), ["a text"], sampling)
    check(engine(cast("Tokenizer", object())), array("i", [1, 2, 3]), sampling)


def read(chunks: Sequence[Any]) -> tuple[str, list[int], str | None, AnswerParser]:
    """Return text, token ids and finish reason."""
    answer = AnswerParser(is_streamed=True)
    text, tokens, finish = "", list[int](), None
    for chunk in chunks:
        for piece, ids, ended in answer.feed(b"data: " + chunk.model_dump_json().encode() + b"\n\n"):
            text, finish = text + piece.text, ended or finish
            tokens += ids
    return text, tokens, finish, answer


def chat(*deltas: dict[str, Any], finish: str = "stop") -> list[Any]:
    """Return the chunks of a streamed chat."""
    chunks = [
        sglang.ChatCompletionStreamResponse(
            id="x",
            model="m",
            choices=[
                sglang.ChatCompletionResponseStreamChoice(
                    index=0, delta=sglang.DeltaMessage(**delta), finish_reason=ended
                )
            ],
        )
        for delta, ended in [*((delta, None) for delta in deltas), ({}, finish)]
    ]
    return [*chunks, sglang.ChatCompletionStreamResponse(id="x", model="m", choices=[], usage=usage())]


def usage() -> Any:
    return sglang.UsageInfo(
        prompt_tokens=5, completion_tokens=2, total_tokens=7, prompt_tokens_details={"cached_tokens": 3}
    )


def test_chats_are_parsed() -> None:
    text, _, finish, answer = read(chat({"role": "assistant", "content": ""}, {"content": "he"}, {"content": "llo"}))
    assert (text, finish, answer.usage, answer.has_ended) == ("hello", "stop", (5, 3, 2, 0), True)


def test_tool_calls_are_parsed() -> None:
    begun = sglang.ToolCall(index=0, id="c", function=sglang.FunctionResponse(name="look", arguments=""))
    rest = sglang.ToolCall(index=0, id=None, function=sglang.FunctionResponse(name=None, arguments='{"a": 1}'))
    text, _, finish, _ = read(chat({"tool_calls": [begun]}, {"tool_calls": [rest]}, finish="tool_calls"))
    assert finish == "stop"
    called = json.loads(text.removeprefix("<tool_call>").removesuffix("</tool_call>"))
    assert called == {"name": "look", "arguments": {"a": 1}}


def test_completions_are_parsed() -> None:
    choice = sglang.CompletionResponseStreamChoice
    logprobs = sglang.LogProbs(text_offset=[-1], tokens=["he"], token_logprobs=[-0.5], top_logprobs=[{"he": -0.5}])
    choices = [
        [choice(index=0, text="he", token_ids=[3, 4], logprobs=logprobs)],
        [choice(index=0, text="", finish_reason="length", token_ids=[])],
        [],
    ]
    chunks = [sglang.CompletionStreamResponse(id="x", model="m", choices=each) for each in choices]
    chunks[-1].usage = usage()
    text, tokens, finish, answer = read(chunks)
    assert (text, tokens, finish, answer.usage) == ("he", [3, 4], "length", (5, 3, 2, 0))
