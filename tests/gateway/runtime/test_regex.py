"""Regular expressions with RE2, within limits."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.runtime import regex as patterns
from gateway.runtime.regex import BadPattern, compiled, search

PIECES = st.sampled_from(["a", "b", "[ab]", ".", "(a)", "(b|ab)", "a{1,3}", "b*", "(?:ab)+", "^", "$", "a?"])


@given(st.lists(PIECES, min_size=1, max_size=6).map("".join), st.text(alphabet="abc", max_size=12))
def test_matches_agree_with_the_standard_library(pattern: str, text: str) -> None:
    expected = re.search(pattern, text)
    found = search(compiled(pattern), 0, text)
    assert found == (None if expected is None else expected.group(0))


@pytest.mark.parametrize(
    "pattern",
    [
        "((((a{200}){200}){200}){200}){200}",
        "(?:a{1000}){1000}",
        "(" * 4_000,
        "(?R)",
        r"(a)\1",
        "(?=a)b",
        "(?<!a)b",
        r"[\pL\pN]{900}",
        "|".join(f"w{n}" for n in range(150_000)),
    ],
)
def test_patterns_beyond_the_limits_are_refused_with_a_reason(pattern: str) -> None:
    with pytest.raises(BadPattern) as refusal:
        compiled(pattern)
    assert len(str(refusal.value)) < 5_000
    assert "b'" not in str(refusal.value)[:60]


def test_a_search_that_would_take_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = compiled("(a?){300}a{300}(b)")
    assert search(pattern, 2, "a" * 300 + "b") == "b"
    monkeypatch.setattr(patterns, "_MAX_WORK", 1000)
    with pytest.raises(BadPattern, match="too large for a text of 301 characters"):
        search(pattern, 2, "a" * 300 + "b")


def test_groups_that_did_not_match_have_no_text() -> None:
    assert search(compiled("(a)|(b)"), 1, "b") is None
    assert search(compiled("(?P<first>[α-ω]+)!"), 1, "πλ!") == "πλ"
