"""Tests of compat/openai/lark.py: Lark grammars that are accepted, refused and rewritten."""

import json

import pytest

from compat.openai.lark import MAX_DEFINITIONS
from compat.openai.response_formats import enforced_schema, validate_grammar
from tests.compat.openai.schemas.answers import NAMED


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        ("start: A\nA: /(.*a.{18})/ & /(.*b.{17})/", "intersection"),
        ("start: A\nA: ~/(.*c.{16})/", "complement"),
        ('start: a\na: "x" a', "no finite text"),
        ('start: "x" a*\na: b\nb: a "y"', "no finite text"),
        ('start: %json {"const": -9223372036854775808}', "represented exactly"),
        (
            "start: A0\n"
            + "\n".join(f"A{index}: A{index + 1}" for index in range(MAX_DEFINITIONS + 1))
            + '\nA1001: "x"',
            "rules",
        ),
        ('start: "' + "x" * 70_000 + '"', "bytes"),
        ("start: /[^\\s\\S]/", "no text matches"),
        ("start", "Expected"),
        ("start: " + "(" * 5000, "cannot be enforced"),
    ],
)
def test_grammars_that_cannot_be_enforced_are_refused(grammar: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as refused:
        validate_grammar(grammar)
    assert len(str(refused.value)) < 400
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "grammar",
    [
        'start: a b?\na: "x" | "(" a ")"\n// c & ~\nb[lazy]: "q"i ("," "z"){2,3} -> hi',
        '%import common.INT\nstart: INT /[&~]/ "&"',
        'start: %lark {\nstart: "a"\n} "b"',
        'start: <think> "a"',
        'start: start start | "a" | ""',
        'start: x | y\nx: "a" x | z\ny: [x]\nz: "1".."3"',
    ],
)
def test_other_grammars_are_accepted(grammar: str) -> None:
    assert validate_grammar(grammar) == grammar


def test_a_schema_within_a_grammar_is_rewritten() -> None:
    assert json.loads(
        validate_grammar(f"start: %json {json.dumps(NAMED)}").removeprefix("start: %json ")
    ) == enforced_schema(NAMED)
