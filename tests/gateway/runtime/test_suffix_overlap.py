"""Tests of gateway/runtime/suffix_overlap.py: marks that a text may contain once it is longer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.runtime.suffix_overlap import suffix_overlap

TEXTS = st.text("ab<", max_size=12)


@given(text=TEXTS, mark=TEXTS)
def test_the_overlap_is_the_longest_suffix_that_begins_the_mark(text: str, mark: str) -> None:
    suffixes = {text[begin:] for begin in range(len(text) + 1)}
    beginnings = {mark[:end] for end in range(max(len(mark), 1))}  # without the whole mark
    assert suffix_overlap(text, mark) == max(map(len, suffixes & beginnings))


@given(text=TEXTS, mark=TEXTS.filter(bool), more=TEXTS)
def test_text_before_the_overlap_cannot_become_part_of_the_mark(text: str, mark: str, more: str) -> None:
    safe = len(text) - suffix_overlap(text, mark)
    grown = text + more
    begins = [begin for begin in range(len(grown)) if grown.startswith(mark, begin)]
    assert all(begin >= safe or begin + len(mark) <= len(text) for begin in begins)


@pytest.mark.parametrize(
    ("text", "mark", "length"),
    [
        ("", "</think>", 0),
        ("done <", "</think>", 1),
        ("done </thin", "</think>", 6),
        ("done </think>", "</think>", 0),
        ("</thin ", "</think>", 0),
        ("aab", "ab", 0),
        ("xaa", "aab", 2),
        ("x", "x", 0),
        ("x", "", 0),
    ],
)
def test_examples(text: str, mark: str, length: int) -> None:
    assert suffix_overlap(text, mark) == length
