"""Tests of compat/openai/schemas/alternatives.py: alternatives of joined parts multiply."""

from typing import Any

import pytest

from compat.openai.schemas.alternatives import max_alternatives

THREE: dict[str, Any] = {"anyOf": [{"type": "null"}, {"type": "string"}, {"const": 1}]}


@pytest.mark.parametrize(
    ("schema", "count"),
    [
        ({}, 1),
        (THREE, 1),
        ({"allOf": [THREE, THREE]}, 9),
        ({"type": ["null", "string"], **THREE}, 6),
        ({"items": {"allOf": [THREE, THREE, {"enum": [1, 2]}]}}, 18),
        ({"properties": {"a": THREE, "b": THREE}}, 1),
        ({"allOf": [{"$ref": "#/$defs/t"}, {"$ref": "#/$defs/t"}], "$defs": {"t": THREE}}, 9),
        ({"$ref": "#/$defs/t", "$defs": {"t": {"allOf": [THREE, {"$ref": "#/$defs/t"}]}}}, 1),
    ],
)
def test_alternatives_of_joined_parts_multiply(schema: dict[str, Any], count: int) -> None:
    assert max_alternatives(schema) == count
