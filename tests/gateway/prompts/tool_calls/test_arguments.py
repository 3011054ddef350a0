"""gateway/prompts/tool_calls/arguments.py: arguments of the project's own models become valid JSON."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.prompts.tool_calls.arguments import ArgumentsReader
from gateway.prompts.tool_calls.parser import ToolCallParser, parse_answer
from tests.fakes.counted_text import CountedText

MARK = "</tool_call>"


def read(text: str, cuts: list[int], mark: str = MARK) -> tuple[str, str, bool]:
    """Return the arguments, the text after them, and whether the arguments are complete, for text in pieces."""
    reader = ArgumentsReader(mark, repairs=True)
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    found = buffer = ""
    for begin, end in itertools.pairwise(places):
        buffer += text[begin:end]
        if not reader.has_ended:
            found += reader.push(buffer)
            buffer = buffer[reader.consumed :]
    return found, buffer, reader.has_ended


@pytest.mark.parametrize(
    ("text", "arguments", "after"),
    [
        ('{"a": 1}}\n</tool_call>', '{"a": 1}', "}\n</tool_call>"),
        ("{'a': True,}}\n</tool_call>", '{"a": true}', "}\n</tool_call>"),
        ('{"a": {"b": 1}\n</tool_call>', '{"a": {"b": 1}\n}', "</tool_call>"),
        ('{"a": "</tool_call>"}}', '{"a": "</tool_call>"}', "}"),
        ('{"a": "x"</tool_call> more', '{"a": "x"}', "</tool_call> more"),
        ('"{\\"a\\": 1}"}', '{"a": 1}', "}"),
        ("[1]}", "[1]", "}"),
        ("null}", "{}", "}"),
    ],
)
@given(cuts=st.lists(st.integers(0, 60), max_size=6))
def test_what_models_write(text: str, arguments: str, after: str, cuts: list[int]) -> None:
    assert read(text, cuts) == (arguments, after, True)


@given(st.text(st.sampled_from("{}[]\"':,\\ \nx1</tool_ca>"), max_size=60), st.lists(st.integers(0, 60), max_size=6))
def test_pieces_do_not_matter(text: str, cuts: list[int]) -> None:
    whole, after, ended = read(text, [])
    if ended:
        json.loads(whole)
        assert read(text, cuts) == (whole, after, ended)


@given(st.text(st.sampled_from("{}[]\"':,\\ \nx1"), max_size=40))
def test_a_marked_call_of_a_free_answer_never_has_malformed_arguments(arguments: str) -> None:
    parser = ToolCallParser(["f"], forced=False)
    _, calls = parse_answer(parser, f'<tool_call>\n{{"name": "f", "arguments": {arguments}}}\n</tool_call>')
    if parser.calls and parser.whole:
        for _, found in calls:
            json.loads(found)


def test_a_value_that_is_not_an_object_takes_linear_time() -> None:
    reader = ArgumentsReader(MARK, repairs=True)
    reader.push('"')
    piece = CountedText("x" * 20)
    for _ in range(10_000):
        reader.push(piece)
    assert reader.push('"') == json.dumps({"arguments": "x" * 200_000})
    assert piece.copied <= 2 * 200_000, "1,000,000,000 if the value so far is copied for each piece"
