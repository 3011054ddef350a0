"""Tests of gateway/runtime/schema_checker/keywords/objects.py: properties, their names and their number."""

from typing import Any

import pytest

from tests.gateway.runtime.schema_checker.verdicts import DRAFT7, assert_verdicts, found, no_verdict

CASES: list[tuple[str, Any, Any, Any, str]] = [
    # name, schema, a valid value, an invalid one, beginning of the violation
    ("propertyNames", {"propertyNames": {"maxLength": 2}}, {"ab": 1}, {"abc": 1}, '$: propertyNames: the name "abc"'),
    ("dependentRequired", {"dependentRequired": {"a": ["b"]}}, {"b": 1}, {"a": 1}, '$: dependentRequired: the property'),
    ("dependentSchemas", {"dependentSchemas": {"a": {"maxProperties": 1}}}, {"a": 1}, {"a": 1, "b": 2}, "$: maxProp"),
    ("dependencies", {**DRAFT7, "dependencies": {"a": ["b"]}}, {"b": 1}, {"a": 1}, '$: dependencies: the property "b" '),
    ("dependencies", {**DRAFT7, "dependencies": {"a": {"required": ["b"]}}}, {"b": 1}, {"a": 1}, '$: required: the pro'),
    ("unevaluatedProperties", {"allOf": [{"properties": {"a": True}}], "unevaluatedProperties": False}, {"a": 1}, {"b": 1}, "$: unev"),
    ("patternProperties", {"patternProperties": {"^a": {"type": "null"}}}, {"a": None, "b": 1}, {"ab": 1}, "ab: type:"),
    ("additionalProperties", {"properties": {"a": True}, "patternProperties": {"^x": True}, "additionalProperties": False}, {"a": 1, "xy": 1}, {"b": 1}, '$: additionalProperties: the property "b" is not allowed'),
    ("additionalProperties", {"additionalProperties": {"type": "null"}}, {"b": None}, {"b": 1}, "b: type: the value is"),
    ("properties", {"properties": {"a": {"type": "null"}, "b": True}}, {"a": None, "c": 1}, {"a": 1}, "a: type: the value is"),
    ("many properties", {"properties": {f"p{number}": {"type": "null"} for number in range(20)}}, {"a": 1}, {"p7": 1}, "p7: type"),
    ("required", {"required": ["a", "b"]}, {"a": 1, "b": 1}, {"a": 1}, '$: required: the property "b" is missing'),
    ("minProperties", {"minProperties": 1}, {"a": 1}, {}, "$: minProperties: there are too few properties"),
    ("maxProperties", {"maxProperties": 1}, {"a": 1}, {"a": 1, "b": 1}, "$: maxProperties: there are too many properties"),
    ("unevaluatedProperties with a schema", {"properties": {"a": True}, "unevaluatedProperties": {"type": "null"}}, {"a": 1, "b": None}, {"b": 1}, "b: type"),
    ("unevaluatedProperties behind patterns", {"patternProperties": {"^a": True}, "unevaluatedProperties": False}, {"ab": 1}, {"b": 1}, '$: unevaluatedProperties: the property "b"'),
]  # fmt: skip


@pytest.mark.parametrize(
    ("schema", "valid", "invalid", "violation"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_each_keyword(schema: Any, valid: Any, invalid: Any, violation: str) -> None:
    assert_verdicts(schema, valid, invalid, violation)


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"properties": {"a": {"required": True}}}, {"a": {}}),
        ({"required": "a"}, {"a": 1}),
        ({"required": ["a", 5]}, {"a": 1}),
        ({"properties": []}, {"a": 1}),
        ({"patternProperties": []}, {"a": 1}),
        ({"patternProperties": {"(?<!a)": True}}, {"a": 1}),
        ({"dependentRequired": {"a": "b"}}, {"a": 1}),
        ({"dependentSchemas": []}, {"a": 1}),
        ({"minProperties": -1}, {}),
        ({"additionalProperties": False, "properties": 5}, {"a": 1}),
    ],
)
def test_malformed_operands_get_no_verdict(schema: Any, value: Any) -> None:
    assert no_verdict(schema, value)


def test_values_that_are_no_objects_are_valid() -> None:
    keywords = {"required": ["a"], "minProperties": 1, "propertyNames": False, "additionalProperties": False}
    others = {"properties": {"a": False}, "patternProperties": {"": False}, "dependentRequired": {"a": ["b"]}}
    for schema in (keywords, others, {"dependentSchemas": {"a": False}, "unevaluatedProperties": False}):
        for value in (None, 1, "a", ["a"]):
            assert found(schema, value) is None


def test_long_names_are_shortened_in_messages() -> None:
    message = str(found({"additionalProperties": False}, {"x" * 1_000: 1}))
    assert message == f'$: additionalProperties: the property "{"x" * 39}…" is not allowed'
