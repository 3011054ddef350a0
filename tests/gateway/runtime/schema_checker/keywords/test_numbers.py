"""Tests of gateway/runtime/schema_checker/keywords/numbers.py: exact comparisons and divisions."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gateway.runtime.schema_checker.verdicts import DRAFT4, assert_verdicts, found, no_verdict

CASES: list[tuple[str, Any, Any, Any, str]] = [
    # name, schema, a valid value, an invalid one, beginning of the violation
    ("multipleOf", {"multipleOf": 0.01}, 0.07, 0.075, "$: multipleOf: the number is not a multiple"),
    ("multipleOf", {"multipleOf": 3}, 3e20, 10**18 + 1, "$: multipleOf: the number is not a multiple"),
    ("large bounds", {"minimum": 2**53 + 1}, 2**53 + 1, 2**53, "$: minimum: the number is too small"),
    ("draft 4 bounds", {"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 1, "exclusiveMinimum": True}, 2, 1, "$: exclusiveM"),
    ("minimum", {"minimum": 1.5}, 1.5, 1, "$: minimum: the number is too small"),
    ("maximum", {"maximum": 1}, 1.0, 1.5, "$: maximum: the number is too large"),
    ("exclusiveMinimum", {"exclusiveMinimum": 1}, 2, 1.0, "$: exclusiveMinimum: the number is too small"),
    ("exclusiveMaximum", {"exclusiveMaximum": 1}, 0, 1, "$: exclusiveMaximum: the number is too large"),
    ("draft 4 inclusive", {**DRAFT4, "maximum": 1, "exclusiveMaximum": False}, 1, 2, "$: maximum: the number is too large"),
    ("draft 4 exclusive", {**DRAFT4, "maximum": 1, "exclusiveMaximum": True}, 0, 1, "$: exclusiveMaximum"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("schema", "valid", "invalid", "violation"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_each_keyword(schema: Any, valid: Any, invalid: Any, violation: str) -> None:
    agrees = schema.get("multipleOf") != 0.01  # jsonschema divides floats
    assert_verdicts(schema, valid, invalid, violation, agrees=agrees)


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"exclusiveMinimum": True, "minimum": 0}, 0.5),
        ({"minimum": "1"}, 1),
        ({"maximum": float("inf")}, 1),
        ({"multipleOf": 0}, 1),
        ({"multipleOf": -1}, 1),
        ({"multipleOf": 10**2_000}, 10**2_000 + 1),
        ({"multipleOf": 0.1}, 0.30000000000000004),
        ({**DRAFT4, "minimum": 1, "exclusiveMinimum": 0}, 1),
    ],
)
def test_malformed_operands_get_no_verdict(schema: Any, value: Any) -> None:
    assert no_verdict(schema, value)


def test_values_that_are_no_numbers_are_valid() -> None:
    schema = {"minimum": 5, "maximum": 1, "exclusiveMinimum": 5, "exclusiveMaximum": 1, "multipleOf": 7}
    for value in (None, True, "x", [1], {"a": 1}):
        assert found(schema, value) is None


@given(st.integers(-(10**6), 10**6), st.integers(1, 10**4), st.integers(0, 4))
def test_decimal_fractions_are_divided_exactly(number: int, divisor: int, digits: int) -> None:
    scale = 10**digits
    schema = {"multipleOf": divisor / scale}
    assert (found(schema, number / scale) is None) == (number % divisor == 0)
