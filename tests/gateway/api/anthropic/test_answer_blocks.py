"""gateway/api/anthropic/answer_blocks.py: blocks and events, as Anthropic's package reads them."""

import json
from collections.abc import Iterable
from typing import Any

import pytest
from anthropic.types import ContentBlock, RawMessageStreamEvent
from pydantic import TypeAdapter

from gateway.api.anthropic.answer_blocks import AnswerBlocks, BlockOptions
from gateway.api.anthropic.signature import ThinkingSigner
from gateway.prompts.tool_calls.parser import AnswerText, ToolCallArguments, ToolCallEvent, ToolCallStart
from gateway.runtime.json_codec import encode_json

SIGNER = ThinkingSigner("t")
_EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
_BLOCK: TypeAdapter[Any] = TypeAdapter(ContentBlock)


def built(
    found: Iterable[ToolCallEvent | str], options: BlockOptions | None = None, *, cut: bool = False
) -> tuple[list[Any], list[Any]]:
    """Return blocks and events as JSON, each validated. Strings are reasoning."""
    blocks = AnswerBlocks(SIGNER, options or BlockOptions())
    events: list[Any] = []
    for event in found:
        events += blocks.add_reasoning(event) if isinstance(event, str) else blocks.add([event])
    events += blocks.end(cut=cut)
    told = [json.loads(encode_json(event)) for event in events]
    done = [json.loads(encode_json(block)) for block in blocks.done]
    for event in told:
        _EVENT.validate_python(event)
    for block in done:
        _BLOCK.validate_python(block)
    return done, told


def deltas(events: Iterable[Any]) -> list[tuple[int, str]]:
    """Return index and content of each delta."""
    return [
        (event["index"], next(value for name, value in event["delta"].items() if name != "type"))
        for event in events
        if event["type"] == "content_block_delta"
    ]


def call(name: str, *arguments: str, index: int = 0) -> list[ToolCallEvent]:
    return [ToolCallStart(index, name), *(ToolCallArguments(index, piece) for piece in arguments)]


def test_reasoning_text_and_calls_are_blocks_in_order() -> None:
    found = ["I ", "think.", AnswerText("Let me "), AnswerText("look."), *call("f", '{"a"', ": 1}"), *call("g", "")]
    blocks, events = built(found)
    assert [block["type"] for block in blocks] == ["thinking", "text", "tool_use", "tool_use"]
    assert blocks[0]["thinking"] == "I think."
    assert SIGNER.verify("I think.", blocks[0]["signature"])
    assert blocks[1]["text"] == "Let me look."
    assert [block["input"] for block in blocks[2:]] == [{"a": 1}, {}]
    assert len({block["id"] for block in blocks[2:]}) == 2
    assert all(block["id"].startswith("toolu_") for block in blocks[2:])
    assert deltas(events) == [
        *[(0, "I "), (0, "think."), (0, blocks[0]["signature"]), (1, "Let me "), (1, "look.")],
        *[(2, '{"a": 1}'), (3, "{}")],
    ]
    starts = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert starts == [
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "text", "text": "", "citations": None},
        *({**block, "input": {}} for block in blocks[2:]),
    ]
    order = [(event["type"].rpartition("_")[2], event["index"]) for event in events]
    for index in range(4):
        assert order.index(("start", index)) < order.index(("stop", index))


@pytest.mark.parametrize("thinking", ["omitted", "none"])
def test_reasoning_may_be_hidden(thinking: Any) -> None:
    blocks, events = built(["secret", AnswerText("a")], BlockOptions(thinking))
    assert "secret" not in json.dumps([blocks, events])
    assert [block["type"] for block in blocks] == (["thinking", "text"] if thinking == "omitted" else ["text"])


@pytest.mark.parametrize(
    "arguments", ["[1]", "3", '"x"', '{"a"', "{'a': 1}", "{} {}", '{"a": NaN}', "[" * 1_000, "{" * 300]
)
def test_arguments_that_are_no_object_become_one(arguments: str) -> None:
    ((block,), events) = built(call("f", arguments))
    assert block["input"] == {"INVALID_JSON": arguments}
    assert json.loads(deltas(events)[0][1]) == block["input"]


def test_arguments_of_megabytes_are_not_parsed() -> None:
    long = '{"a": "' + "x" * (5 << 20) + '"}'
    ((block,), _) = built(call("f", long))
    assert block["input"] == {"INVALID_JSON": long}


@pytest.mark.parametrize(
    ("arguments", "input"),
    [('{"a": 1, "b', {"a": 1}), ('{"a": [1, 2', {"a": [1, 2]}), ("", {}), ("{", {}), ('{"n": ' + "9" * 30, None)],
)
def test_arguments_that_were_cut_off_are_those_that_clients_parse(arguments: str, input: Any) -> None:
    ((block,), events) = built(call("f", arguments), cut=True)
    if input is not None:
        assert block["input"] == input
    assert deltas(events) == [(0, arguments or "{}")]
    ((block,), _) = built(call("f", "[1"), cut=True)
    assert block["input"] == {"INVALID_JSON": "[1"}


def test_arguments_may_be_streamed_while_they_are_generated() -> None:
    options = BlockOptions(eager_tools={"f"})
    _, events = built([*call("f", '{"a', '": 1}'), *call("g", '{"a', '": 1}')], options)
    assert deltas(events) == [(0, '{"a'), (0, '": 1}'), (1, '{"a": 1}')]


def test_further_calls_are_dropped() -> None:
    found = [*call("f", '{"a": 1}'), *call("g", '{"b": 2}', index=1), AnswerText("end")]
    blocks, events = built(found, BlockOptions(max_calls=1))
    assert [block.get("input", block.get("text")) for block in blocks] == [{"a": 1}, "end"]
    assert "g" not in json.dumps([event for event in events if event["type"] == "content_block_start"])


def test_only_reasoning_is_no_answer() -> None:
    blocks = AnswerBlocks(SIGNER, BlockOptions())
    blocks.add_reasoning("hm")
    assert blocks.is_unanswered
    events = [*blocks.add_empty_text(), *blocks.end()]
    assert [type(event).__name__ for event in events] == [
        *("ContentBlockDelta", "ContentBlockStop", "ContentBlockStart", "ContentBlockStop")
    ]
    assert not blocks.is_unanswered
