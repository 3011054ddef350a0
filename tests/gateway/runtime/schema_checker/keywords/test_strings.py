"""Tests of gateway/runtime/schema_checker/keywords/strings.py: lengths and patterns."""

from typing import Any

import pytest

from tests.gateway.runtime.schema_checker.verdicts import assert_verdicts, found, no_verdict

CASES: list[tuple[str, Any, Any, Any, str]] = [
    # name, schema, a valid value, an invalid one, beginning of the violation
    ("pattern", {"pattern": "^a+$"}, "aa", "b", "$: pattern: the string does not match"),
    ("minLength", {"minLength": 2}, "éé", "é", "$: minLength: the string is too short"),
    ("maxLength", {"maxLength": 1}, "\U0001f600", "ab", "$: maxLength: the string is too long"),
    ("pattern within", {"pattern": "b"}, "abc", "ac", "$: pattern: the string does not match"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("schema", "valid", "invalid", "violation"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_each_keyword(schema: Any, valid: Any, invalid: Any, violation: str) -> None:
    assert_verdicts(schema, valid, invalid, violation)


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"minLength": -1}, "a"),
        ({"maxLength": "1"}, "a"),
        ({"pattern": 5}, "a"),
        ({"pattern": "(?=a)b"}, "x"),
        ({"pattern": r"(a)\1"}, "x"),
        ({"pattern": r"^\s$"}, "\N{NO-BREAK SPACE}"),
    ],
)
def test_malformed_operands_get_no_verdict(schema: Any, value: Any) -> None:
    assert no_verdict(schema, value)


def test_values_that_are_no_strings_are_valid() -> None:
    for value in (None, 1, ["x" * 9], {"xxxxxxxxx": 1}):
        assert found({"minLength": 9, "maxLength": 1, "pattern": "^$"}, value) is None
