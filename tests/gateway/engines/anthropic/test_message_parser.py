"""gateway/engines/anthropic/message_parser.py: events and whole messages, with faults."""

import json
from typing import Any

import pytest

from gateway.engines.anthropic.message_parser import MessageParser
from gateway.engines.openai.stream_parser import InvalidAnswer, ReportedUsage
from gateway.engines.protocol import ContextRefused
from gateway.prompts.tool_calls.parser import ToolCallParser, parse_answer
from tests.fakes.scripted_messages import call, events_of, message_of, text, thinking

BLOCKS = [thinking("I think."), text("Let me look."), call("f", a=[1]), call("g")]
CALLS = (
    '<tool_call>\n{"name": "f", "arguments": {"a": [1]}}\n</tool_call>\n<tool_call>\n{"name": "g", "arguments": {}}\n'
)


def parsed(data: bytes, *, is_streamed: bool = True, size: int = 10**9) -> tuple[str, str, str | None, MessageParser]:
    """Return text, reasoning, finish reason and the parser, after reading data in pieces of a size."""
    parser = MessageParser(is_streamed=is_streamed)
    said, thought, finish = "", "", None
    for start in range(0, len(data), size):
        for piece, _, reason in parser.feed(data[start : start + size]):
            said, thought, finish = said + piece.text, thought + piece.reasoning, reason or finish
    return said, thought, finish, parser


def encoded(*events: Any) -> bytes:
    return b"".join(f"event: {event.get('type')}\ndata: {json.dumps(event)}\n\n".encode() for event in events)


@pytest.mark.parametrize("size", [1, 7, 10**9])
def test_a_streamed_message(size: int) -> None:
    said, thought, finish, parser = parsed(encoded(*events_of(message_of(*BLOCKS, reason="tool_use"))), size=size)
    assert said.replace('{"a":[1]}', '{"a": [1]}').startswith("Let me look." + CALLS)
    assert (thought, finish, parser.has_ended) == ("I think.", "stop", True)
    assert parser.usage == ReportedUsage(prompt=30, cached=15, completion=9, reasoning=4)


def test_a_whole_message_is_the_same() -> None:
    message = message_of(*BLOCKS, reason="tool_use")
    whole = parsed(json.dumps(message).encode(), is_streamed=False)
    streamed = parsed(encoded(*events_of(message)))
    assert whole[0].replace('": [', '":[') == streamed[0].replace('": [', '":[')
    assert whole[1:3] == streamed[1:3]
    assert whole[3].usage == streamed[3].usage


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("end_turn", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "content_filter"),
        ("pause_turn", "stop"),
    ],
)
def test_reasons_to_stop(reason: str, finish: str) -> None:
    assert parsed(encoded(*events_of(message_of(text("a"), reason=reason))))[2] == finish


def test_the_stop_sequence_is_reported() -> None:
    message = message_of(text("a"), reason="stop_sequence", stop_sequence="END")
    *_, finish, parser = parsed(encoded(*events_of(message)))
    assert (finish, parser.stop_string) == ("stop", "END")


def test_a_call_that_was_cut_off_has_no_end() -> None:
    events = events_of(message_of(call("f", a="x" * 20), reason="max_tokens"))
    said, *_ = parsed(encoded(*[event for event in events if event["type"] != "content_block_stop"]))
    assert "</tool_call>" not in said


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("overloaded_error", InvalidAnswer),
        ("api_error", InvalidAnswer),
        ("invalid_request_error", ContextRefused),
        ("request_too_large", ContextRefused),
        (None, InvalidAnswer),
    ],
)
def test_errors_in_a_stream(kind: str | None, error: type[Exception]) -> None:
    with pytest.raises(error, match="why"):
        parsed(encoded({"type": "error", "error": {"type": kind, "message": "why"}}))


@pytest.mark.parametrize(
    "events",
    [
        [{"type": "message_start", "message": {"usage": {"input_tokens": "many"}}}],
        [{"type": "message_start"}, {"type": "content_block_start"}, {"type": "content_block_delta", "index": 0}],
        [{"type": "content_block_delta", "delta": {"type": "input_json_delta", "partial_json": "{}"}}],
        [{"type": "content_block_start", "content_block": {"type": "web_search_tool_result", "content": [1]}}],
        [{"type": "unheard_of"}, {}, {"type": "message_delta", "delta": {}}],
        [{"type": "message_start", "message": {"usage": {"input_tokens": -1, "output_tokens": 10**12}}}],
    ],
)
def test_unusual_events_do_no_harm(events: list[Any]) -> None:
    said, thought, finish, parser = parsed(encoded(*events))
    assert (said, thought, finish, parser.has_ended, parser.usage) == ("", "", None, False, None)


@pytest.mark.parametrize(
    "data", [b"data: {]\n\n", b"data: 5\n\n", b'data: {"type": 5}\n\n', b'data: {"content": 5}\n\n', b"data: \xff\n\n"]
)
def test_invalid_events_are_faults(data: bytes) -> None:
    with pytest.raises(InvalidAnswer):
        parsed(data)


def test_thinking_takes_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse thinking that takes more than ten minutes if the thinking so far is copied for each piece: the test's time
    limit ends it. The limit on its size is raised, because copies of less thinking are too fast."""
    monkeypatch.setattr("gateway.engines.anthropic.message_parser._MAX_THINKING", 100_000_000)
    remembered: list[Any] = []
    parser = MessageParser(is_streamed=True, remember=lambda text, calls, blocks: remembered.append(blocks))
    message = message_of(thinking("ab" * 1_000_000), text("x"))
    first, *rest = events_of(message)
    grown = {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "a" * 1_000}}
    events = [event for event in rest if event.get("delta", {}).get("type") != "thinking_delta"]
    started = next(index for index, event in enumerate(events) if event["type"] == "content_block_start") + 1
    data = encoded(first, *events[:started]) + encoded(grown) * 80_000 + encoded(*events[started:])
    for start in range(0, len(data), 60_000):
        list(parser.feed(data[start : start + 60_000]))
    assert remembered == [[{"type": "thinking", "thinking": "a" * 80_000_000, "signature": "theirs"}]]


def test_empty_thinking_blocks_are_not_remembered_without_bound() -> None:
    remembered: list[Any] = []
    parser = MessageParser(is_streamed=True, remember=lambda text, calls, blocks: remembered.append(blocks))
    empty = {"type": "content_block_start", "index": 0, "content_block": {"type": "redacted_thinking", "data": ""}}
    list(parser.feed(encoded(*[empty] * 20_000, *events_of(message_of(text("x"))))))
    assert remembered == [], "20,000 blocks occupy several megabytes"


def test_blocks_that_alternate_keep_their_deltas() -> None:
    def start(index: int, block: dict[str, Any]) -> dict[str, Any]:
        empty = {"input": {}} if block["type"] == "tool_use" else {"text": ""}
        return {"type": "content_block_start", "index": index, "content_block": {**block, **empty}}

    def delta(index: int, kind: str, **content: str) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **content}}

    events = [
        start(0, text("")),
        start(1, call("f")),
        start(2, call("g")),
        start(3, call("f")),
        delta(2, "input_json_delta", partial_json='{"b": '),
        delta(1, "input_json_delta", partial_json='{"a": 1}'),
        delta(0, "text_delta", text="Look."),
        delta(2, "input_json_delta", partial_json="2}"),
        delta(9, "input_json_delta", partial_json='{"of": "no block"}'),
        *({"type": "content_block_stop", "index": index} for index in (3, 2, 1, 0)),
    ]
    first, *_, last, stop = events_of(message_of(reason="tool_use"))
    remembered: list[Any] = []
    parser = MessageParser(is_streamed=True, remember=lambda text, calls, blocks: remembered.append(calls))
    data = encoded(first, *events_of(message_of(thinking("a")))[2:-2], *events, last, stop)
    said = "".join(piece.text for piece, _, _ in parser.feed(data))
    content, found = parse_answer(ToolCallParser(["f", "g"], forced=False), said)
    assert found == [("f", '{"a": 1}'), ("g", '{"b": 2}'), ("f", "{}")]
    assert content.strip() == "Look."
    assert remembered == [[("f", {"a": 1}), ("g", {"b": 2}), ("f", {})]]


def test_events_after_the_end_are_ignored() -> None:
    events = events_of(message_of(text("first")))
    assert parsed(encoded(*events, *events))[0] == "first"
