"""compat/openai/grammars.py: errors of llguidance as clients see them."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from compat.openai.grammars import client_message, matches_lark, problem_of_lark, problem_of_regex, problem_of_schema


@given(st.text())
@example("panic: assertion failed\n<backtrace>\n   0: <unknown>")
@example("NoExtensionBias\n<non-verbose/>")
@example("regex parse error:\n    (\n    ^\nerror: unclosed group")
def test_errors_of_the_library_become_one_short_line(error: str) -> None:
    message = client_message(error)
    assert 0 < len(message) <= 201
    assert message.isprintable()
    assert "backtrace" not in message
    assert "panic" not in message


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ('{"type": "string"}', ""),
        ("true", ""),
        ("{", "expected"),
        ("false", "Unsatisfiable"),
        ('{"type": "any"}', "any"),
        ('{"not": {}}', "not"),
    ],
)
def test_problems_of_schemas(schema: str, problem: str) -> None:
    found = problem_of_schema(schema)
    assert (found == "") == (problem == "")
    assert problem in found


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [("a+", ""), ("", ""), ("(", "unclosed group"), ("[^\\s\\S]", "unsatisfiable"), ("(a)\\1", "backreferences")],
)
def test_problems_of_patterns(pattern: str, problem: str) -> None:
    found = problem_of_regex(pattern)
    assert (found == "") == (problem == "")
    assert problem in found


@pytest.mark.parametrize(
    ("grammar", "problem"),
    [
        ('start: "a"', ""),
        ("start: <think>", ""),
        ("start", "Expected"),
        ("start: nowhere", "nowhere"),
        ("", "Empty grammar"),
    ],
)
def test_problems_of_grammars(grammar: str, problem: str) -> None:
    found = problem_of_lark(grammar)
    assert (found == "") == (problem == "")
    assert problem in found


@pytest.mark.parametrize(
    ("text", "matches"), [("ab", True), ("abab", True), ("", False), ("aba", False), ("abc", False), ("\ud800", False)]
)
def test_a_text_matches_a_grammar_as_a_whole(text: str, matches: bool) -> None:
    assert matches_lark('start: ("a" "b")+', text) is matches
