"""Tests of compat/openai/schemas/enforceable.py: unsupported keywords are refused or dropped."""

import json
from typing import Any

import pytest

from compat.openai.response_formats import enforced_schema
from compat.openai.schemas.enforceable import unenforced_keywords
from tests.compat.openai.schemas.answers import BEST, LENIENT, fits

UNSUPPORTED: list[dict[str, Any]] = [
    {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
    {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "string"}},
    *({"type": "string", "format": name} for name in ("uri-reference", "path", "password", "binary", "int64")),
    *({"type": "string", "pattern": pattern} for pattern in ("^(?!\\s).+$", "\\bx\\b", "(a)\\1", "(")),
    {"not": {"type": "null"}},
    {"type": "array", "prefixItems": [{"type": "integer"}], "unevaluatedItems": False},
    {"type": "array", "items": {"type": "integer"}, "contains": False},
    {"type": "object", "additionalProperties": {"type": "integer"}, "propertyNames": False},
    {"type": "array", "contains": {"const": 1}},
    {"if": {"required": ["a"]}, "then": {"required": ["b"]}},
    {"dependentRequired": {"a": ["b"]}},
    {"oneOf": [{"type": "integer"}, {"type": "number"}]},
    {"$ref": "#/$defs/nowhere"},
    {"type": "any"},
    {"type": ["string", 5]},
    {"type": "integer", "multipleOf": 99_999_999},
    {"allOf": [{"type": "integer", "multipleOf": 997}, {"type": "integer", "multipleOf": 991}]},
    {"type": "string", "maxLength": "long"},
    {"patternProperties": {"^(?!x)": {}}, "additionalProperties": False},
    {"type": "number", "minimum": 5e-324},
    {"properties": []},
    {"required": "a"},
]


@pytest.mark.parametrize("part", UNSUPPORTED, ids=[json.dumps(part)[:50] for part in UNSUPPORTED])
def test_dropped_keywords_are_named(part: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": {"a": part, "b": {"type": "integer"}}}
    dropped = unenforced_keywords(schema)
    with pytest.raises(ValueError, match="cannot be enforced") as refused:
        enforced_schema(schema)
    if "oneOf" in part:  # it is not dropped, but works as anyOf
        assert dropped == []
    else:
        assert any(keyword in str(refused.value) for keyword in dropped)
    assert unenforced_keywords({"type": "object", "properties": {"b": {"type": "integer"}}}) == []


@pytest.mark.parametrize("part", UNSUPPORTED, ids=[json.dumps(part)[:50] for part in UNSUPPORTED])
def test_unsupported_keywords_are_refused_if_strict_and_dropped_if_not(part: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": {"a": part, "b": {"type": "integer"}}, "required": ["b"]}
    with pytest.raises(ValueError, match="cannot be enforced") as refused:
        enforced_schema(schema)
    assert "\n" not in str(refused.value)
    for enforcement in (BEST, LENIENT):
        enforced = enforced_schema(schema, enforcement)
        assert fits(enforced, {"b": 3})
        assert not fits(enforced, {"b": "three"}), "the rest is enforced"
