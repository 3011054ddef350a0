"""Tests of gateway/runtime/schema_checker/check.py: how a check visits schemas and values."""

from typing import Any

import pytest

from gateway.runtime.schema_checker.check import EvaluatedParts, UnknownValue
from tests.gateway.runtime.schema_checker.verdicts import assert_verdicts, found, nested, no_verdict

CASES: list[tuple[str, Any, Any, Any, str]] = [
    # name, schema, a valid value, an invalid one, beginning of the violation
    ("false", {"properties": {"a": False}}, {}, {"a": 1}, "a: false: the schema allows no value here"),
    ("the first violation", {"minimum": 5, "multipleOf": 5}, 5, 1, "$: minimum"),
    ("unknown keywords", {"x": 5, "format": "date", "type": "string"}, "x", 1, "$: type"),
    ("last keywords come last", {"unevaluatedProperties": False, "allOf": [{"properties": {"a": True}}]}, {"a": 1}, {"b": 1}, "$: unevaluatedProperties"),
    ("properties of other values", {"properties": {"a": {"properties": {"b": True}}}, "unevaluatedProperties": False}, {"a": {"c": 1}}, {"a": {}, "b": 1}, "$: unevaluatedProperties"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("schema", "valid", "invalid", "violation"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_visits(schema: Any, valid: Any, invalid: Any, violation: str) -> None:
    assert_verdicts(schema, valid, invalid, violation)


@pytest.mark.parametrize("schema", [[], 1, None, "x", {"allOf": [1]}, {"properties": {"a": []}}])
def test_schemas_are_objects_or_booleans(schema: Any) -> None:
    assert no_verdict(schema, {"a": 1}) == "a schema is neither an object nor a boolean"


def test_what_an_inner_schema_with_unevaluated_properties_allows_is_evaluated() -> None:
    inner = {"properties": {"a": True}, "unevaluatedProperties": True}
    assert found({"allOf": [inner], "unevaluatedProperties": False}, {"a": 1, "b": 1}) is None


def test_schemas_are_visited_to_a_limited_depth() -> None:
    deep: Any = {"type": "integer"}
    for _ in range(149):
        deep = {"items": deep}
    assert found(deep, nested(149)) is None
    assert found(deep, nested(149, "x")) == f"…{'[0]' * 54}: type: the value is not of type integer"
    assert no_verdict({"items": deep}, nested(150)) == "the schema or the value is nested too deeply"
    assert found({"items": deep}, nested(100)) is None, "only as deep as the value"


def test_levels_are_counted_anew_after_a_violation() -> None:
    wide = {"anyOf": [{"type": "null"}] * 400 + [{"type": "integer"}]}
    assert found(wide, 1) is None


def test_evaluated_parts_are_joined() -> None:
    all, some = EvaluatedParts(), EvaluatedParts()
    some.keys.add("a")
    some.items.add(1)
    all.items.add(2)
    all.add(some)
    assert (all.keys, all.items, all.all_items) == ({"a"}, {1, 2}, False)
    some.all_items = True
    all.add(some)
    all.add(EvaluatedParts())
    assert all.all_items


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"not": {"properties": {"a": {"type": "integer"}}}}, {"a": UnknownValue()}),
        ({"oneOf": [{"type": "object"}, {"properties": {"a": True}, "required": ["a"]}]}, UnknownValue()),
        ({"if": {"properties": {"a": {"const": 1}}}, "then": {"required": ["b"]}}, {"a": UnknownValue()}),
        ({"contains": {"const": 1}, "maxContains": 1}, [1, UnknownValue()]),
        ({"uniqueItems": True}, [UnknownValue(), UnknownValue()]),
        ({"anyOf": [{"properties": {"a": {"const": 1}}, "unevaluatedProperties": False}]}, {"a": UnknownValue()}),
        ({"properties": {"a": False}}, {"a": UnknownValue()}),
    ],
)
def test_an_unknown_part_may_become_valid(schema: Any, value: Any) -> None:
    assert found(schema, value) is None


def test_known_parts_beside_unknown_ones_are_checked() -> None:
    schema = {"properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["c"]}
    assert str(found(schema, {"a": UnknownValue(), "b": "x"})).startswith("b: type")
    assert str(found(schema, {"a": UnknownValue()})).startswith("$: required")
    assert no_verdict({"enum": [{"a": 1}]}, {"a": UnknownValue()}) == "a part of the value is not known yet"
