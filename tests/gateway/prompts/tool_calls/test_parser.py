"""Tool calls are found in answers, complete or in pieces."""

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.prompts.tool_calls.formats import HERMES
from gateway.prompts.tool_calls.parser import (
    _MAX_HELD,
    AnswerText,
    ToolCallArguments,
    ToolCallEvent,
    ToolCallParser,
    ToolCallStart,
)

NAMES = ["weather", "add"]


def read(pieces: list[str], *, forced: bool = False, ends_early: bool = False) -> tuple[str, list[tuple[str, str]]]:
    """Return the text, and the calls with their arguments."""
    reader = ToolCallParser(NAMES, forced=forced)
    found: list[ToolCallEvent] = []
    for piece in pieces:
        found += reader.push(piece)
    found += reader.finish(cut=ends_early)
    content, calls = "", []
    for piece in found:
        match piece:
            case AnswerText(text):
                content += text
            case ToolCallStart(index, name):
                assert index == len(calls)
                calls.append((name, ""))
            case ToolCallArguments(index, text):
                assert index == len(calls) - 1
                calls[index] = (calls[index][0], calls[index][1] + text)
    assert reader.calls == len(calls)
    return content, calls


def cut(text: str, pick: random.Random) -> list[str]:
    positions = sorted(pick.randrange(len(text) + 1) for _ in range(pick.randrange(len(text) + 2)))
    return [text[a:b] for a, b in zip([0, *positions], [*positions, len(text)], strict=True)]


CASES: list[tuple[str, str, list[tuple[str, str]]]] = [
    ("Just words, with < and {braces} in them.", "Just words, with < and {braces} in them.", []),
    ("<<reference>>", "<<reference>>", []),
    (
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Bonn"}}\n</tool_call>',
        "",
        [("weather", '{"city": "Bonn"}')],
    ),
    (
        'I look.\n<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>\n'
        '<tool_call>\n{"name":"add","arguments":{"a":[1,{"b":"}"}]}}\n</tool_call>',
        "I look.",
        [("weather", "{}"), ("add", '{"a":[1,{"b":"}"}]}')],
    ),
    ('{"name": "add", "parameters": {"a": 1, "b": 2}}', "", [("add", '{"a": 1, "b": 2}')]),
    (
        '[{"name": "add", "arguments": {"a": "\\"]}"}}, {"name": "weather", "arguments": {"c": null}}]',
        "",
        [("add", '{"a": "\\"]}"}'), ("weather", '{"c": null}')],
    ),
    ('{"answer": 42}', '{"answer": 42}', []),
    ('{"name": "unknown", "arguments": {}}', '{"name": "unknown", "arguments": {}}', []),
    ("<tool_call>nonsense</tool_call> and on", "<tool_call>nonsense</tool_call> and on", []),
    ('<tool_call>\n{"name": "add", "arguments": {"a": 1', "", [("add", '{"a": 1')]),
    ("[1, 2, 3] is a list", "[1, 2, 3] is a list", []),
    (
        '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>\nThat was it.',
        "That was it.",
        [("add", '{"a": 1}')],
    ),
]


@pytest.mark.parametrize(("text", "content", "calls"), CASES)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=50)
def test_calls_are_found_in_pieces_of_any_size(
    seed: int, text: str, content: str, calls: list[tuple[str, str]]
) -> None:
    assert read([text]) == (content, calls)
    assert read(cut(text, random.Random(seed))) == (content, calls)
    assert read([*text]) == (content, calls)


@given(
    arguments=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=8,
    ).map(lambda value: {"value": value}),
    count=st.integers(1, 3),
    seed=st.integers(0, 2**32),
)
def test_written_calls_are_found_again(arguments: dict[str, Any], count: int, seed: int) -> None:
    body = json.dumps({"name": "add", "arguments": arguments})
    for text, forced in ((body, True), (f"{HERMES.begin}{body}{HERMES.end}" * count, False)):
        content, calls = read(cut(text, random.Random(seed)), forced=forced)
        assert content == ""
        assert [(name, json.loads(text)) for name, text in calls] == [("add", arguments)] * (1 if forced else count)


def test_arguments_are_emitted_as_they_arrive() -> None:
    reader = ToolCallParser(NAMES, forced=True)
    assert reader.push('{"name": "add", "argu') == []
    assert reader.push('ments": {"a"') == [ToolCallStart(0, "add"), ToolCallArguments(0, '{"a"')]
    assert reader.push(": 12") == [ToolCallArguments(0, ": 12")]
    assert reader.push("}}") == [ToolCallArguments(0, "}")]
    assert reader.finish() == []


def test_text_that_only_begins_like_a_call_is_emitted() -> None:
    # a bracket and then the beginning of a mark: the states must not return it to each other without end
    for text in ("[<", "[<b>", "{<tool_call", "[ ,<tool_call>"):
        reader = ToolCallParser(["f"], forced=False)
        found = [*reader.push(text), *reader.finish()]
        assert "".join(piece.text for piece in found if isinstance(piece, AnswerText)) == text


def test_a_forced_call_may_have_marks() -> None:
    reader = ToolCallParser(["f"], forced=True)
    found = [*reader.push('<tool_call>\n{"name": "f", "arguments": {"a"'), *reader.push(": 1}}\n</tool_call>")]
    found += reader.finish()
    assert [piece for piece in found if isinstance(piece, ToolCallStart)] == [ToolCallStart(0, "f")]
    assert "".join(piece.text for piece in found if isinstance(piece, ToolCallArguments)) == '{"a": 1}'
    assert not any(isinstance(piece, AnswerText) for piece in found)


ONE = '{"name": "weather", "arguments": {"city": "B\\"}nn", "days": [1, {"a": 2}]}}'
FORCED = [
    ONE,
    ONE.replace(": ", ":").replace('", ', '",'),
    ONE.replace("arguments", "parameters"),
    f"[{ONE}, {ONE}]",
    f"[ {ONE},{ONE} ]",
    f"{HERMES.begin}{ONE}{HERMES.end}\n{HERMES.begin}{ONE}{HERMES.end}",
]


@pytest.mark.parametrize("text", FORCED)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=20)
def test_the_text_of_a_cut_off_forced_call_is_not_emitted(seed: int, text: str) -> None:
    _, whole = read([text], forced=True)
    assert len(whole) == text.count("name")
    pick = random.Random(seed)
    for end in range(len(text) + 1):
        reader = ToolCallParser(NAMES, forced=True)
        content, calls = read(cut(text[:end], pick), forced=True, ends_early=bool(pick.randrange(2)))
        assert content == "", text[:end]
        assert [name for name, _ in calls] == ["weather"] * len(calls)
        for (_, begun), (_, arguments) in zip(calls, whole, strict=False):
            assert arguments.startswith(begun)
        reader.push(text[:end])
        reader.finish(cut=True)
        complete = all(arguments == ended for (_, arguments), (_, ended) in zip(calls, whole, strict=False))
        assert reader.whole == complete, text[:end]


@pytest.mark.parametrize("before", ["", "I look.\n"])
@given(seed=st.integers(0, 2**32))
@settings(max_examples=20)
def test_the_text_of_a_cut_off_call_is_not_emitted(seed: int, before: str) -> None:
    text = f"{before}{HERMES.begin}{ONE}{HERMES.end}"
    pick = random.Random(seed)
    for end in range(len(before) + len("<tool_call>"), len(text) + 1):
        content, _ = read(cut(text[:end], pick), ends_early=True)
        assert content == before.strip(), text[:end]


@pytest.mark.parametrize("text", ["Paris", '{"city": "Paris"}', '{"name": "Bonn"}x', "3.5", "<b>"])
def test_text_that_cannot_be_a_call_is_emitted_even_if_a_call_is_forced(text: str) -> None:
    assert read([*text], forced=True) == (text, [])


BROKEN = st.lists(
    st.sampled_from(
        [
            "<tool_call>",
            "</tool_call>",
            '{"name": "',
            "weather",
            '", "arguments": ',
            "{}",
            "}",
            "\\q",
            "\\ud800",
            "\n",
            '"',
            "[",
        ]
    ),
    max_size=12,
)


@given(BROKEN, st.booleans(), st.booleans())
def test_any_text_of_a_model_is_parsed_without_an_error(pieces: list[str], forced: bool, cut: bool) -> None:
    text, calls = read(pieces, forced=forced, ends_early=cut)
    text.encode()
    assert all(name in NAMES for name, _ in calls)


def test_many_calls_take_linear_time() -> None:
    """Parse calls that take more than half an hour if each copies the rest of the text: the test's time limit ends
    it."""
    call = f'<tool_call>\n{{"name": "add", "arguments": {{"a":"{"x" * 1_000}"}}}}\n</tool_call>\n'
    reader = ToolCallParser(["add"], forced=False)
    found = [*reader.push(call * 40_000), *reader.finish()]
    assert sum(isinstance(piece, ToolCallStart) for piece in found) == 40_000


TEXT_CALLS: list[tuple[str, bool, bool, str, list[tuple[str, str]]]] = [
    (
        'Now:\n<tool_call>\n{"name": "edit"}\n+ "a"\\\n\n</tool_call>\n<tool_call>\n'
        '{"name": "add", "arguments": {}}\n</tool_call>',
        *(False, False, "Now:", [("edit", '+ "a"\\\n'), ("add", "{}")]),
    ),
    ('{"name": "edit"}\nBEGIN\n</tool_call>\nEND', True, False, "", [("edit", "BEGIN\n</tool_call>\nEND")]),
    ('{"name": "edit"}\nBEG', True, True, "", [("edit", "BEG")]),
    ('<tool_call>\n{"name": "edit"}\nBEG\n</tool', False, True, "", [("edit", "BEG\n</tool")]),
    ('<tool_call>\n{"name": "edit", "arguments": {"input": "x"}}\n</tool_call>', False, False, "", [("edit", "x")]),
    ('{"name": "add"}\nBEGIN', False, False, '{"name": "add"}\nBEGIN', []),
]


@pytest.mark.parametrize(("text", "forced", "is_cut", "content", "calls"), TEXT_CALLS)
def test_the_input_of_a_call_may_be_a_text(
    text: str, forced: bool, is_cut: bool, content: str, calls: list[tuple[str, str]]
) -> None:
    pick = random.Random(1)
    for _ in range(50):
        parser = ToolCallParser([*NAMES, "edit"], forced=forced, text_names=["edit"])
        found = [event for piece in cut(text, pick) for event in parser.push(piece)]
        found += parser.finish(cut=is_cut)
        assert "".join(event.text for event in found if isinstance(event, AnswerText)) == content
        names = [event.name for event in found if isinstance(event, ToolCallStart)]
        arguments = ["" for _ in names]
        for event in found:
            if isinstance(event, ToolCallArguments):
                arguments[event.index] += event.text
        assert names == [name for name, _ in calls]
        for (name, expected), written in zip(calls, arguments, strict=True):
            if is_cut:
                assert written == json.dumps({"input": expected})[:-2]
            else:
                assert json.loads(written) == ({"input": expected} if name == "edit" else json.loads(expected))
        assert parser.whole == (not is_cut or not calls)


@pytest.mark.parametrize("begin", ["", "text", "<tool_call>", "[", '<tool_call>{"name": "add", "arguments": {}}'])
@pytest.mark.parametrize("character", [" ", "\n", "["])
def test_white_space_is_held_back_within_a_bound(begin: str, character: str) -> None:
    """Check that what is held back, which is searched for each character, does not grow with the answer."""
    reader = ToolCallParser(NAMES, forced=False)
    found = list(reader.push(begin))
    for _ in range(10_000):
        found += reader.push(character)
        assert len(reader._buffer) + len(reader._pending_mark) <= _MAX_HELD + len(begin)
    if "add" not in begin:
        text = "".join(event.text for event in found if isinstance(event, AnswerText))
        assert len(text) > 7_000, "it was emitted while it arrived"
