"""Tests of gateway/runtime/schema_checker/keywords/arrays.py: items, and their number."""

from typing import Any

import pytest

from tests.gateway.runtime.schema_checker.verdicts import DRAFT7, assert_verdicts, found, no_verdict

CASES: list[tuple[str, Any, Any, Any, str]] = [
    # name, schema, a valid value, an invalid one, beginning of the violation
    ("uniqueItems", {"uniqueItems": True}, [1, True, "1"], [1, 1.0], "$: uniqueItems: the items are not unique"),
    ("unique objects", {"uniqueItems": True}, [{"a": 1}, {"a": 2}], [{"a": 1, "b": [0]}, {"b": [0.0], "a": 1}], "$: u"),
    ("contains", {"contains": {"const": 3}}, [1, 3], [1], "$: contains: no item is valid for it"),
    ("minContains", {"contains": {"const": 3}, "minContains": 2}, [3, 3], [3, 1], "$: minContains: too few items"),
    ("maxContains", {"contains": {"const": 3}, "maxContains": 1}, [3, 1], [3, 3], "$: maxContains: too many items"),
    ("unevaluatedItems", {"prefixItems": [True], "unevaluatedItems": False}, [1], [1, 2], "$: unevaluatedItems: the it"),
    ("items before 2020", {**DRAFT7, "items": [{"type": "null"}], "additionalItems": False}, [None], [None, 1], "[1]: false: the"),
    ("items", {"prefixItems": [{"type": "null"}], "items": {"type": "string"}}, [None, "a"], [None, 1], "[1]: type: the"),
    ("items of draft 7", {**DRAFT7, "items": {"type": "null"}}, [None], [None, 1], "[1]: type: the value is not of type null"),
    ("additionalItems", {**DRAFT7, "items": [True], "additionalItems": {"type": "null"}}, [1, None], [1, 2], "[1]: type: the"),
    ("prefixItems", {"prefixItems": [{"type": "null"}, {"type": "string"}]}, [None], [None, 1], "[1]: type: the value is"),
    ("contains of draft 7", {**DRAFT7, "contains": {"const": 3}, "minContains": 9}, [3], [1], "$: contains: no item is valid"),
    ("minContains is zero", {"contains": {"const": 3}, "minContains": 0, "maxContains": 1}, [], [3, 3], "$: maxContains: too"),
    ("minItems", {"minItems": 2}, [1, 2], [1], "$: minItems: there are too few items"),
    ("maxItems", {"maxItems": 1.0}, [1], [1, 2], "$: maxItems: there are too many items"),
    ("unevaluatedItems with a schema", {"contains": {"const": 1}, "unevaluatedItems": {"type": "null"}}, [1, None], [1, 2], "[1]: type: the value is not of type null"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("schema", "valid", "invalid", "violation"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_each_keyword(schema: Any, valid: Any, invalid: Any, violation: str) -> None:
    assert_verdicts(schema, valid, invalid, violation)


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"items": [{"type": "null"}]}, [1]),
        ({"minItems": -1}, [1]),
        ({"maxItems": True}, [1]),
        ({"uniqueItems": "yes"}, [1]),
        ({"contains": True, "minContains": 0.5}, [1]),
        ({"prefixItems": {"type": "null"}}, [1]),
    ],
)
def test_malformed_operands_get_no_verdict(schema: Any, value: Any) -> None:
    assert no_verdict(schema, value)


def test_values_that_are_no_arrays_are_valid() -> None:
    keywords = {"items": False, "prefixItems": [False], "contains": False, "uniqueItems": True, "minItems": 5}
    for schema in (keywords, {**DRAFT7, "items": [False], "additionalItems": False}, {"unevaluatedItems": False}):
        for value in (None, 1, "x", {"a": [1, 1]}):
            assert found(schema, value) is None


def test_additional_items_have_no_meaning_without_a_list_of_items() -> None:
    assert found({**DRAFT7, "items": True, "additionalItems": False}, [1, 2]) is None
    assert found({**DRAFT7, "additionalItems": False}, [1, 2]) is None


def test_items_that_a_part_evaluated_may_be_of_any_kind() -> None:
    for part in ({"items": True}, {"unevaluatedItems": True}, {"prefixItems": [True, True]}, {"contains": True}):
        assert found({"anyOf": [part, {"minItems": 9}], "unevaluatedItems": False}, [1, 2]) is None
    assert found({"allOf": [{"prefixItems": [True]}], "unevaluatedItems": False}, [1, 2]) is not None
