"""Tests of compat/openai/schemas/rewriter.py: objects, patterns of names and joined parts."""

from typing import Any

import jsonschema
import pytest

from compat.openai.response_formats import enforced_schema
from tests.compat.openai.schemas.answers import NAMED, X, Y, fits


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"),
    [
        (NAMED, {"a": "s"}, {"b": 1}),
        ({"anyOf": [NAMED, {"type": "null"}]}, {"a": "s"}, {"a": "s", "b": 1}),
        ({"type": "array", "items": NAMED}, [{"a": "s"}], [{"a": "s", "b": 1}]),
        ({"$defs": {"N": NAMED}, "$ref": "#/$defs/N"}, {"a": "s"}, {"b": 1}),
        ({"type": "object", "properties": {}}, {}, {"b": 1}),
        (
            {"$defs": {"B": X}, "allOf": [{"$ref": "#/$defs/B"}, Y]},
            {"x": True, "y": True},
            {"x": True, "y": True, "z": 1},
        ),
        ({"$defs": {"B": X}, "$ref": "#/$defs/B", **Y}, {"y": True, "x": True}, {"y": True, "x": True, "z": 1}),
        (
            {"$defs": {"B": X, "C": Y}, "allOf": [{"$ref": "#/$defs/B"}, {"$ref": "#/$defs/C"}]},
            {"x": True, "y": False},
            {"x": True, "y": True, "z": 1},
        ),
        ({"allOf": [X, Y]}, {"x": True, "y": True}, {"x": True, "y": True, "z": 1}),
        (
            {**X, "anyOf": [Y, {"properties": {"z": {}}, "required": ["z"]}]},
            {"x": True, "y": True},
            {"x": True, "y": True, "z": 1},
        ),
        ({**X, "unevaluatedProperties": False, "allOf": [Y]}, {"x": True, "y": True}, {"x": True, "y": True, "z": 1}),
        ({"type": "object", "properties": {"a": {}}, "required": ["zz"]}, {"a": 1, "zz": 2}, {"zz": 1, "b": 2}),
    ],
)
def test_objects_have_the_properties_that_the_schema_and_its_parts_name(
    schema: dict[str, Any], valid: Any, invalid: Any
) -> None:
    jsonschema.validate(valid, schema)
    assert fits(enforced_schema(schema), valid)
    assert not fits(enforced_schema(schema), invalid)


def test_a_nested_object_of_two_parts_is_joined_before_it_is_closed() -> None:
    left = {"type": "object", "properties": {"in": X}, "required": ["in"]}
    right = {"type": "object", "properties": {"in": Y}, "required": ["in"]}
    schema = {"$defs": {"L": left}, "allOf": [{"$ref": "#/$defs/L"}, right]}
    assert fits(enforced_schema(schema), {"in": {"x": True, "y": True}})
    assert not fits(enforced_schema(schema), {"in": {"x": True}})


@pytest.mark.parametrize(
    "schema",
    [{"type": "object"}, {**NAMED, "additionalProperties": True}, {"allOf": [NAMED], "additionalProperties": True}],
)
def test_objects_that_allow_other_properties_stay_open(schema: dict[str, Any]) -> None:
    assert fits(enforced_schema(schema), {"other": 1})


def test_a_pattern_of_literal_names_becomes_properties() -> None:
    score = {"type": "integer", "minimum": 0}
    schema = {
        "type": "object",
        "properties": {"s": score},
        "patternProperties": {"^(s|t)$": {"maximum": 9}},
        "additionalProperties": False,
    }
    enforced = enforced_schema(schema)
    for value, valid in (({"s": 5}, True), ({"s": 50}, False), ({"s": 5, "t": 1}, True), ({"u": 1}, False)):
        assert fits(enforced, value) is valid
        assert jsonschema.Draft202012Validator(schema).is_valid(value) is valid
