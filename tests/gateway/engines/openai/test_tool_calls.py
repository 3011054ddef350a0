"""gateway/engines/openai/tool_calls.py: tool calls of upstream servers are checked before clients get them."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.engines.openai.tool_calls import (
    FunctionFragment,
    MalformedCalls,
    MalformedToolCall,
    ToolCallFragment,
    ToolCallWriter,
)
from gateway.prompts.tool_calls.parser import ToolCallParser, parse_answer
from tests.fakes.counted_text import CountedKey
from tests.fakes.in_process_gateway import gateway_before
from tests.fakes.scripted_server import ScriptedServer, chunk, sends, stream

NAMES = ["f", "g"]
JSON_OBJECTS = st.dictionaries(st.text(max_size=3), st.text(max_size=8) | st.integers() | st.lists(st.booleans()))
FEATURES = st.lists(st.tuples(st.sampled_from(NAMES), JSON_OBJECTS.map(json.dumps)), min_size=1, max_size=4)
TOOLS: list[dict[str, Any]] = [{"type": "function", "function": {"name": name}} for name in NAMES]


def fragment(index: int | None, name: str | None, arguments: str | None, id: str | None = None) -> ToolCallFragment:
    return ToolCallFragment(index, id, FunctionFragment(name, arguments))


def calls_of(
    fragments: Sequence[Sequence[ToolCallFragment]], malformed: MalformedCalls = MalformedCalls.REPAIR, **options: Any
) -> list[tuple[str, str]]:
    """Return the tool calls that a client gets for the fragments."""
    writer = ToolCallWriter(malformed)
    text = "".join([writer.add(some, **options) for some in fragments]) + writer.finish(cut=False)
    parser = ToolCallParser(NAMES, forced=False, repairs=False)
    content, found = parse_answer(parser, text)
    assert (content, parser.whole) == ("", True)
    return found


@given(FEATURES, st.randoms(use_true_random=False), st.sampled_from(["index", "id", "both"]), st.booleans())
def test_valid_calls_stay_as_they_are_however_they_are_cut(
    calls: list[tuple[str, str]], pick: Any, identified_by: str, alternates: bool
) -> None:
    fragments: list[list[ToolCallFragment]] = []
    for number, (name, arguments) in enumerate(calls):
        cuts = sorted(pick.randrange(len(arguments) + 1) for _ in range(pick.randrange(4)))
        pieces = [arguments[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(arguments)], strict=True)]
        index = None if identified_by == "id" else number
        id = None if identified_by == "index" else f"call_{number}"
        fragments.append([fragment(index, name, "", id), *(fragment(index, None, piece, id) for piece in pieces)])
    if alternates:
        heads, rest = [each[0] for each in fragments], [each[1:] for each in fragments]
        queues = [list(each) for each in rest]
        order = [number for number, queue in enumerate(queues) for _ in queue]
        pick.shuffle(order)
        arriving = [*heads, *(queues[number].pop(0) for number in order)]
    else:
        arriving = [piece for each in fragments for piece in each]
    assert calls_of([[piece] for piece in arriving]) == calls
    assert calls_of([arriving]) == calls
    assert calls_of([[piece] for piece in arriving], MalformedCalls.REFUSE) == calls
    whole = [fragment(None, name, arguments) for name, arguments in calls]
    assert calls_of([whole], whole=True) == calls


@given(
    st.lists(st.tuples(st.sampled_from(NAMES), st.text(st.sampled_from("{}[]\",:\\1 \n'ax"))), min_size=1, max_size=3)
)
def test_arguments_are_always_json(calls: list[tuple[str, str]]) -> None:
    arriving = [[fragment(number, name, arguments)] for number, (name, arguments) in enumerate(calls)]
    found = calls_of(arriving)
    assert [name for name, _ in found] == [name for name, _ in calls]
    for _, arguments in found:
        json.loads(arguments)


def test_calls_with_one_index_and_several_ids_are_several_calls() -> None:
    arriving = [[fragment(0, "f", '{"a": 1}', "call_1")], [fragment(0, "g", '{"b": 2}', "call_2")]]
    assert calls_of(arriving) == [("f", '{"a": 1}'), ("g", '{"b": 2}')]
    repeated = [[fragment(0, "f", '{"a"', "call_1")], [fragment(0, "f", ": 1}", "call_1")]]
    assert calls_of(repeated) == [("f", '{"a": 1}')]
    late = [[fragment(0, None, '{"a"')], [fragment(0, "f", ": 1}")]]
    assert calls_of(late) == [("f", '{"a": 1}')]


def test_a_call_without_a_name_is_left_out_or_refused() -> None:
    arriving = [[fragment(0, None, "{}")], [fragment(1, "g", "{}")]]
    assert calls_of(arriving) == [("g", "{}")]
    with pytest.raises(MalformedToolCall, match="no name"):
        calls_of(arriving, MalformedCalls.REFUSE)


def test_malformed_calls_are_refused_or_passed_on() -> None:
    arriving = [[fragment(0, "f", "{'a': 1}")]]
    with pytest.raises(MalformedToolCall, match="'f' are not JSON"):
        calls_of(arriving, MalformedCalls.REFUSE)
    assert calls_of(arriving, MalformedCalls.PASS) == [("f", "{'a': 1}")]
    assert calls_of([[fragment(0, "f", "")]], MalformedCalls.REFUSE) == [("f", "{}")]


def test_a_call_that_a_limit_cuts_off_has_no_end() -> None:
    writer = ToolCallWriter(MalformedCalls.REPAIR)
    text = writer.add([fragment(0, "f", '{"a": "x')]) + writer.finish(cut=True)
    parser = ToolCallParser(NAMES, forced=False, repairs=False)
    assert parse_answer(parser, text, cut=True) == ("", [("f", '{"a": "x')])
    assert not parser.whole


def answers(*fragments: Any, finish: str = "tool_calls") -> Any:
    """Return a behaviour that streams the entries of `tool_calls`, one or several in each event."""

    async def behave(request: Any, body: dict[str, Any]) -> Any:
        events = [chunk(body, None) for _ in fragments]
        for event, entries in zip(events, fragments, strict=True):
            event["choices"][0]["delta"]["tool_calls"] = entries
        return await stream(request, [*events, chunk(body, None, finish)])

    return behave


def entry(index: int, arguments: str, **function: Any) -> dict[str, Any]:
    return {"index": index, "id": f"call_{index}", "function": {"arguments": arguments, **function}}


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_client_gets_json_and_one_entry_in_each_chunk(streamed: bool) -> None:
    body = {"model": "fake", "messages": [{"role": "user", "content": "x"}], "tools": TOOLS, "stream": streamed}
    async with ScriptedServer() as server, gateway_before(server) as (client, _):
        server.script = [
            answers(
                [entry(0, "", name="f"), entry(1, "{'b': ", name="g")],
                [entry(0, '{"a": "two\n'), entry(1, "True,")],
                [entry(0, 'lines"')],
            )
        ]
        async with client.post("/v1/chat/completions", json=body) as response:
            content = await response.text()
        assert response.status == 200, content
        calls: dict[int, list[str]] = {}
        if streamed:
            finish = None
            for line in content.splitlines():
                if line.startswith("data: {"):
                    (choice,) = json.loads(line[6:])["choices"]
                    entries = choice["delta"].get("tool_calls", [])
                    assert len(entries) <= 1
                    for each in entries:
                        call = calls.setdefault(each["index"], ["", ""])
                        call[0] += each["function"].get("name", "")
                        call[1] += each["function"].get("arguments", "")
                    finish = choice["finish_reason"] or finish
        else:
            (choice,) = json.loads(content)["choices"]
            finish = choice["finish_reason"]
            for index, each in enumerate(choice["message"]["tool_calls"]):
                calls[index] = [each["function"]["name"], each["function"]["arguments"]]
        found = [(name, json.loads(arguments)) for name, arguments in calls.values()]
        assert found == [("f", {"a": "two\nlines"}), ("g", {"b": True})]
        assert finish == "tool_calls"


async def test_a_refused_call_fails_and_the_server_stays_in_use() -> None:
    body = {"model": "fake", "messages": [{"role": "user", "content": "x"}], "tools": TOOLS}
    malformed = MalformedCalls.REFUSE
    async with ScriptedServer() as server, gateway_before(server, malformed=malformed) as (client, _):
        whole = {"tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{'a'}"}}]}
        answer = {"choices": [{"message": whole, "finish_reason": "tool_calls"}]}
        for behaviour in [
            answers([entry(0, "{'a'}", name="f")]),
            sends(json.dumps(answer).encode(), "application/json"),
        ] * 4:
            server.script = [behaviour]
            async with client.post("/v1/chat/completions", json=body) as response:
                error = (await response.json())["error"]
            assert (response.status, "malformed tool call" in error["message"]) == (503, True), error
        async with client.post("/v1/chat/completions", json=body) as response:
            assert response.status == 200


@pytest.mark.parametrize("has_index", [True, False])
def test_an_answer_has_a_bounded_number_of_calls(has_index: bool) -> None:
    def calls(count: int) -> list[ToolCallFragment]:
        return [fragment(n if has_index else None, "f", "{}", f"call_{n}") for n in range(count)]

    assert len(calls_of([calls(1_000)])) == 1_000
    with pytest.raises(ValueError, match="more than 1000 tool calls"):
        calls_of([calls(1_001)])


@pytest.mark.parametrize("has_index", [True, False])
def test_fragments_find_their_call_in_constant_time(has_index: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def fragments(name: str | None, arguments: str) -> list[ToolCallFragment]:
        keys: list[Any] = [CountedKey(f"call_{number}") for number in range(1_000)]
        return [fragment(key if has_index else None, name, arguments, None if has_index else key) for key in keys]

    monkeypatch.setattr(CountedKey, "comparisons", 0)
    writer = ToolCallWriter(MalformedCalls.REPAIR)
    writer.add(fragments("f", "{"))
    for _ in range(10):
        writer.add(fragments(None, " "))
    assert writer.count == 1_000
    assert CountedKey.comparisons <= 2 * 10_000, "5,000,000 if all calls are searched"


def test_refused_arguments_take_linear_time() -> None:
    """Write arguments that take more than ten minutes if those so far are copied for each piece: the test's time limit
    ends it."""
    writer = ToolCallWriter(MalformedCalls.REFUSE)
    writer.add([fragment(0, "f", '{"a": "')])
    for _ in range(100_000):
        writer.add([fragment(0, None, "x" * 600)])
    writer.add([fragment(0, None, '"}')])
    assert writer.finish(cut=False).startswith("}")


@pytest.mark.parametrize("malformed", MalformedCalls)
def test_text_within_a_call_stands_behind_it(malformed: MalformedCalls) -> None:
    writer = ToolCallWriter(malformed)
    text = writer.add_text("Let me look.")
    text += writer.add([fragment(0, "f", '{"a"')])
    assert writer.add_text("odd") == "", "it would become a part of the arguments"
    text += writer.add([fragment(0, None, ": 1}")])
    text += writer.add([fragment(1, "g", "{}")])
    text += writer.add_text(" Then") + writer.add_text(" more.")
    text += writer.finish(cut=False)
    content, found = parse_answer(ToolCallParser(NAMES, forced=False, repairs=False), text)
    assert found == [("f", '{"a": 1}'), ("g", "{}")]
    assert "".join(content.split("\n")) == "Let me look.odd Then more."


def test_text_after_a_complete_call_does_not_wait() -> None:
    writer = ToolCallWriter(MalformedCalls.REPAIR)
    writer.add([fragment(0, "f", "{}")])
    assert writer.add_text("Then").endswith("</tool_call>\nThen")
    assert writer.add_text(" more") == " more"
    assert writer.finish(cut=False) == ""
