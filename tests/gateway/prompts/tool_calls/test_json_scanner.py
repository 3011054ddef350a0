"""Tests of gateway/prompts/tool_calls/json_scanner.py: the end of a JSON value in text that arrives in pieces."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.prompts.tool_calls.json_scanner import JsonScanner

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text('a"\\{}[], \n', max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('k"\\}', max_size=3), inner, max_size=3),
    max_leaves=6,
)
INDENTS = st.sampled_from([None, 1])


def scan(pieces: list[str]) -> tuple[str, str | None]:
    """Return the text of the value, and the text behind its end; None if the value does not end."""
    scanner, found = JsonScanner(), ""
    for index, piece in enumerate(pieces):
        text, ends = scanner.split(piece)
        assert piece.startswith(text)
        found += text
        if ends:
            return found, piece[len(text) :] + "".join(pieces[index + 1 :])
        assert text == piece, "all of the text belongs to a value that has not ended"
    return found, None


def cut(text: str, positions: list[int]) -> list[str]:
    bounds = [0, *sorted(position % (len(text) + 1) for position in positions), len(text)]
    return [text[begin:end] for begin, end in pairwise(bounds)]


@given(VALUES, INDENTS, st.sampled_from(["}", "]", ", 1}", "\n}", " x"]), st.lists(st.integers(0, 99), max_size=5))
def test_the_value_ends_at_the_same_place_however_the_text_is_cut(
    value: Any, indent: int | None, behind: str, positions: list[int]
) -> None:
    text = json.dumps(value, indent=indent)
    for pieces in ([text + behind], list(text + behind), cut(text + behind, positions)):
        assert scan(pieces) == (text, behind)


@given(VALUES, INDENTS, st.integers(0, 99))
def test_a_value_does_not_end_before_its_end(value: Any, indent: int | None, position: int) -> None:
    text = json.dumps(value, indent=indent)
    begun = text[: position % len(text)]
    assert scan([begun]) == (begun, None)
    ends_itself = isinstance(value, str | list | dict)
    assert scan([text]) == (text, "" if ends_itself else None), "a number may have more digits"


@pytest.mark.parametrize(
    ("text", "value", "behind"),
    [
        (" \n\t{}", " \n\t{}", ""),
        ("   12,", "   12", ","),
        ("tru e", "tru", " e"),
        ('"\\\\"x', '"\\\\"', "x"),
        ('"\\""x', '"\\""', "x"),
        ("{}{}", "{}", "{}"),
        ("", "", None),
        ("  ", "  ", None),
        ("}", "", "}"),
        ("[}", "[}", ""),  # invalid JSON ends somewhere
    ],
)
def test_examples(text: str, value: str, behind: str | None) -> None:
    assert scan([text]) == (value, behind)
