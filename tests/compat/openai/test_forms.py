"""compat/openai/forms.py"""

from typing import Any

import pytest

from compat.openai import closed

NAMED: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "string"}}}
CLOSED = {**NAMED, "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "becomes"),
    [
        (NAMED, CLOSED),
        ({"type": "object"}, {"type": "object"}),
        ({"type": "object", "properties": {}}, {"type": "object", "properties": {}, "additionalProperties": False}),
        ({**NAMED, "additionalProperties": True}, {**NAMED, "additionalProperties": True}),
        ({**NAMED, "patternProperties": {"^x": {}}}, {**NAMED, "patternProperties": {"^x": {}}}),
        ({"allOf": [NAMED, {"required": ["a"]}]}, {"allOf": [NAMED, {"required": ["a"]}]}),
        ({**NAMED, "anyOf": [{"required": ["a"]}]}, {**NAMED, "anyOf": [{"required": ["a"]}]}),
        ({"anyOf": [NAMED, {"type": "null"}]}, {"anyOf": [CLOSED, {"type": "null"}]}),
        ({"type": "array", "items": NAMED}, {"type": "array", "items": CLOSED}),
        ({"$defs": {"properties": NAMED}, "$ref": "#/$defs/properties"}, None),
        ({"enum": [NAMED], "default": NAMED}, {"enum": [NAMED], "default": NAMED}),
        ({"type": "object", "properties": {"properties": {"const": NAMED}}}, None),
        (True, True),
    ],
)
def test_objects_have_the_properties_they_name(schema: Any, becomes: Any) -> None:
    if becomes is None:
        becomes = {
            "$defs": {"$defs": {"properties": CLOSED}, "$ref": "#/$defs/properties"},
            "properties": {
                "type": "object",
                "properties": {"properties": {"const": NAMED}},
                "additionalProperties": False,
            },
        }["$defs" if "$defs" in schema else "properties"]
    assert closed(schema) == becomes
