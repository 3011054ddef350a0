"""gateway/prompts/tool_calls/input_decoder.py: the input of a custom tool, from arguments in pieces."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.prompts.tool_calls.input_decoder import InputDecoder


def decode(pieces: list[str]) -> str:
    decoder = InputDecoder()
    return "".join([*map(decoder.push, pieces), decoder.finish()])


@given(text=st.text(), ascii=st.booleans(), sizes=st.lists(st.integers(1, 7), min_size=1))
def test_the_input_does_not_depend_on_the_pieces(text: str, ascii: bool, sizes: list[int]) -> None:
    arguments, pieces, position = json.dumps({"input": text}, ensure_ascii=ascii), list[str](), 0
    while position < len(arguments):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(arguments[position : position + size])
        position += size
    assert decode(pieces) == text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"patch": "x"}', '{"patch": "x"}'),
        ("*** Begin Patch", "*** Begin Patch"),
        ('{"input": 3}', '{"input": 3}'),
        ('{"inp', '{"inp'),
        ("", ""),
        ('{"input": "ab', "ab"),
        ('{"input": "ab\\', "ab"),
        ('{"input": "ab\\u00', "ab"),
        (' { "input" :\n"ab"\n}', "ab"),
        ('{"input": "a", "other": "b"}', "a"),
        ('{"input": "a\nb"}', "a\nb"),
        ('{"input": "\\q"}', "\\q"),
        ('{"input": "\\ud800"}', "\\ud800"),
    ],
)
def test_arguments_of_another_form_are_the_input_as_far_as_possible(arguments: str, expected: str) -> None:
    assert decode([arguments]) == decode(list(arguments)) == expected


def test_white_space_before_the_input_takes_linear_time() -> None:
    """Decode white space that takes more than half an hour if it is searched for each piece: the test's time limit
    ends it."""
    decode(["{", *[" "] * 1_000_000])
