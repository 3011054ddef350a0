"""Tests of gateway/runtime/schema_checker/references.py: references, identifiers and anchors."""

from typing import Any

import pytest

from tests.gateway.runtime.schema_checker.verdicts import DRAFT7, assert_verdicts, found, no_verdict

CASES: list[tuple[str, Any, Any, Any, str]] = [
    # name, schema, a valid value, an invalid one, beginning of the violation
    ("$id", {"$id": "https://example.com/a", "$ref": "b", "$defs": {"b": {"$id": "b", "$ref": "#/$defs/c", "$defs": {"c": {"type": "null"}}}}}, None, 1, "$: type:"),
    ("$anchor", {"items": {"$ref": "#x"}, "$defs": {"x": {"$anchor": "x", "type": "null"}}}, [None], [1], "[0]: type:"),
    ("percent", {"$ref": "#/$defs/a%20b", "$defs": {"a b": {"type": "null"}}}, None, 1, "$: type:"),
    ("recursion", {"properties": {"next": {"$ref": "#"}, "v": {"type": "null"}}}, {"next": {"next": {}}}, {"next": {"next": {"v": 1}}}, "next.next.v: type"),
    ("relative id", {"$id": "https://example.com/a/", "$ref": "b/c", "$defs": {"c": {"$id": "b/c", "type": "null"}}}, None, 1, "$: type:"),
    ("id of draft 7", {**DRAFT7, "$id": "http://example.com/r", "properties": {"x": {"$ref": "p"}}, "definitions": {"p": {"$id": "p", "type": "null"}}}, {"x": None}, {"x": 1}, "x: type:"),
    ("nested id", {"$id": "https://example.com/a", "properties": {"x": {"$id": "b", "$ref": "#/$defs/c", "$defs": {"c": {"type": "null"}}}}}, {"x": None}, {"x": 1}, "x: type:"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("schema", "valid", "invalid", "violation"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_targets_of_references(schema: Any, valid: Any, invalid: Any, violation: str) -> None:
    assert_verdicts(schema, valid, invalid, violation)


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"$ref": "#/$defs/none"}, 1),
        ({"$ref": "https://example.com/schema.json"}, 1),
        ({"$ref": "http://[x"}, 1),
        ({"$ref": "#"}, 1),
        ({"$ref": "#unknown"}, 1),
        ({"$ref": "#/required", "required": ["a"]}, {"a": 1}),
        ({"$id": 5, "$ref": "#/$defs/a", "$defs": {"a": True}}, 1),
    ],
)
def test_references_that_cannot_be_resolved_get_no_verdict(schema: Any, value: Any) -> None:
    assert no_verdict(schema, value)


def test_a_reference_that_is_not_followed_needs_no_target() -> None:
    schema = {"properties": {"a": {"$ref": "https://example.com/schema.json"}, "b": {"type": "null"}}}
    assert found(schema, {"b": None}) is None
    assert found(schema, {"b": 1}) == "b: type: the value is not of type null"
    assert "cannot be resolved" in no_verdict(schema, {"a": 1})
