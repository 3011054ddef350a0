"""Tests of gateway/runtime/schema_checker/keywords/general.py: types, constants and combinations of schemas."""

from typing import Any

import pytest

from tests.gateway.runtime.schema_checker.verdicts import DRAFT2019, assert_verdicts, found, no_verdict

CASES: list[tuple[str, Any, Any, Any, str]] = [
    # name, schema, a valid value, an invalid one, beginning of the violation
    ("not", {"not": {"type": "string"}}, 1, "x", "$: not: the value is valid for a schema for which it must not be"),
    ("if, then", {"if": {"minimum": 5}, "then": {"multipleOf": 5}}, 10, 7, "$: multipleOf: the number is not a mul"),
    ("if, else", {"if": {"minimum": 5}, "else": {"const": 0}}, 0, 1, "$: const: the value is not the required one"),
    ("$dynamicRef", {"$dynamicAnchor": "n", "properties": {"n": {"$dynamicRef": "#n"}}, "required": ["v"]}, {"v": 1, "n": {"v": 2}}, {"v": 1, "n": {}}, 'n: required: the property "v" is missing'),
    ("$recursiveRef", {"$schema": "https://json-schema.org/draft/2019-09/schema", "type": "object", "properties": {"n": {"$recursiveRef": "#"}}}, {"n": {}}, {"n": 1}, "n: type: the value is not of type object"),
    ("oneOf", {"oneOf": [{"minimum": 1}, {"minimum": 2}]}, 1, 2, "$: oneOf: the value is valid for more than one"),
    ("oneOf", {"oneOf": [{"minimum": 1}, {"minimum": 2}]}, 1, 0, "$: oneOf: the value is valid for none"),
    ("anyOf", {"anyOf": [{"minimum": 1}, {"type": "string"}]}, "", 0, "$: anyOf: the value is valid for none"),
    ("type", {"type": ["integer", "null"]}, 1.0, True, "$: type: the value is not of type integer or null"),
    ("enum", {"enum": [1, "a", [1, {"b": None}]]}, [1.0, {"b": None}], True, "$: enum: the value is not one of the listed"),
    ("$ref", {"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"type": "null"}}}, None, 1, "$: type: the value is not of type null"),
    ("type of numbers", {"type": "integer"}, -3.0, 0.5, "$: type: the value is not of type integer"),
    ("type twice", {"type": ["null", "null"]}, None, 0, "$: type: the value is not of type null"),
    ("const", {"const": {"a": [1]}}, {"a": [1.0]}, {"a": [True]}, "$: const: the value is not the required one"),
    ("allOf", {"allOf": [{"minimum": 1}, {"maximum": 2}]}, 2, 3, "$: maximum: the number is too large"),
    ("if without then", {"if": {"type": "null"}, "else": False}, None, 1, "$: false: the schema allows no value here"),
    ("not of all", {"not": False, "type": "null"}, None, 1, "$: type"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("schema", "valid", "invalid", "violation"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_each_keyword(schema: Any, valid: Any, invalid: Any, violation: str) -> None:
    assert_verdicts(schema, valid, invalid, violation)


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "any"}, 1),
        ({"type": 1}, 1),
        ({"type": ["null", 5]}, None),
        ({"enum": 1}, 1),
        ({"allOf": 1}, 1),
        ({"anyOf": {}}, 1),
        ({"oneOf": "x"}, 1),
        ({"$ref": 7}, 1),
        ({**DRAFT2019, "$recursiveRef": "#/$defs/a"}, 1),
    ],
)
def test_malformed_operands_get_no_verdict(schema: Any, value: Any) -> None:
    assert no_verdict(schema, value)


def test_booleans_are_no_numbers() -> None:
    for type in ("integer", "number"):
        assert found({"type": type}, True) is not None
    assert found({"enum": [1, 0]}, True) is not None
    assert found({"const": False}, 0) is not None


def test_alternatives_after_the_first_valid_one_count_for_unevaluated_properties() -> None:
    schema = {"anyOf": [{"properties": {"a": True}}, {"properties": {"b": True}}], "unevaluatedProperties": False}
    assert found(schema, {"a": 1, "b": 1}) is None
    assert str(found(schema, {"c": 1})).startswith("$: unevaluatedProperties")


def test_what_an_invalid_alternative_evaluated_does_not_count() -> None:
    schema = {"anyOf": [{"properties": {"a": {"type": "null"}}}, True], "unevaluatedProperties": False}
    assert found(schema, {"a": None}) is None
    assert str(found(schema, {"a": 1})).startswith("$: unevaluatedProperties")
