"""gateway/runtime/name_pattern.py, compared with a regular expression."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.runtime.name_pattern import matches

TEXTS = st.text("ab*", max_size=8)


@given(TEXTS, st.text("ab", max_size=10))
def test_a_star_stands_for_any_text(pattern: str, name: str) -> None:
    expected = re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name) is not None
    assert matches(pattern, name) == expected


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [("a[b]*", "a[b]c", True), ("a?", "ab", False), ("ab*ba", "aba", False), ("*", "", True), ("", "a", False)],
)
def test_other_characters_stand_for_themselves(pattern: str, name: str, expected: bool) -> None:
    assert matches(pattern, name) == expected


def test_a_pattern_of_many_stars_takes_linear_time() -> None:
    assert not matches("a*" * 5_000 + "b", "a" * 100_000)  # a backtracking search would not end
