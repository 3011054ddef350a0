"""Tests of gateway/runtime/schema_checker/keywords: every keyword, in every draft, and malformed operands."""

import json
from typing import Any

import jsonschema
import pytest

from tests.gateway.runtime.schema_checker.verdicts import DRAFT7, found, no_verdict

CASES: list[tuple[str, Any, Any, Any, str]] = [
    # keyword, schema, a valid value, an invalid one, beginning of the violation
    ("not", {"not": {"type": "string"}}, 1, "x", "$: not: the value is valid for a schema for which it must not be"),
    ("if, then", {"if": {"minimum": 5}, "then": {"multipleOf": 5}}, 10, 7, "$: multipleOf: the number is not a mul"),
    ("if, else", {"if": {"minimum": 5}, "else": {"const": 0}}, 0, 1, "$: const: the value is not the required one"),
    ("uniqueItems", {"uniqueItems": True}, [1, True, "1"], [1, 1.0], "$: uniqueItems: the items are not unique"),
    ("unique objects", {"uniqueItems": True}, [{"a": 1}, {"a": 2}], [{"a": 1, "b": [0]}, {"b": [0.0], "a": 1}], "$: u"),
    ("contains", {"contains": {"const": 3}}, [1, 3], [1], "$: contains: no item is valid for it"),
    ("minContains", {"contains": {"const": 3}, "minContains": 2}, [3, 3], [3, 1], "$: minContains: too few items"),
    ("maxContains", {"contains": {"const": 3}, "maxContains": 1}, [3, 1], [3, 3], "$: maxContains: too many items"),
    ("propertyNames", {"propertyNames": {"maxLength": 2}}, {"ab": 1}, {"abc": 1}, '$: propertyNames: the name "abc"'),
    ("dependentRequired", {"dependentRequired": {"a": ["b"]}}, {"b": 1}, {"a": 1}, '$: dependentRequired: the property'),
    ("dependentSchemas", {"dependentSchemas": {"a": {"maxProperties": 1}}}, {"a": 1}, {"a": 1, "b": 2}, "$: maxProp"),
    ("dependencies", {**DRAFT7, "dependencies": {"a": ["b"]}}, {"b": 1}, {"a": 1}, '$: dependencies: the property "b" '),
    ("dependencies", {**DRAFT7, "dependencies": {"a": {"required": ["b"]}}}, {"b": 1}, {"a": 1}, '$: required: the pro'),
    ("unevaluatedItems", {"prefixItems": [True], "unevaluatedItems": False}, [1], [1, 2], "$: unevaluatedItems: the it"),
    ("unevaluatedProperties", {"allOf": [{"properties": {"a": True}}], "unevaluatedProperties": False}, {"a": 1}, {"b": 1}, "$: unev"),
    ("$dynamicRef", {"$dynamicAnchor": "n", "properties": {"n": {"$dynamicRef": "#n"}}, "required": ["v"]}, {"v": 1, "n": {"v": 2}}, {"v": 1, "n": {}}, 'n: required: the property "v" is missing'),
    ("$recursiveRef", {"$schema": "https://json-schema.org/draft/2019-09/schema", "type": "object", "properties": {"n": {"$recursiveRef": "#"}}}, {"n": {}}, {"n": 1}, "n: type: the value is not of type object"),
    ("oneOf", {"oneOf": [{"minimum": 1}, {"minimum": 2}]}, 1, 2, "$: oneOf: the value is valid for more than one"),
    ("oneOf", {"oneOf": [{"minimum": 1}, {"minimum": 2}]}, 1, 0, "$: oneOf: the value is valid for none"),
    ("anyOf", {"anyOf": [{"minimum": 1}, {"type": "string"}]}, "", 0, "$: anyOf: the value is valid for none"),
    ("pattern", {"pattern": "^a+$"}, "aa", "b", "$: pattern: the string does not match"),
    ("patternProperties", {"patternProperties": {"^a": {"type": "null"}}}, {"a": None, "b": 1}, {"ab": 1}, "ab: type:"),
    ("additionalProperties", {"properties": {"a": True}, "patternProperties": {"^x": True}, "additionalProperties": False}, {"a": 1, "xy": 1}, {"b": 1}, '$: additionalProperties: the property "b" is not allowed'),
    ("additionalProperties", {"additionalProperties": {"type": "null"}}, {"b": None}, {"b": 1}, "b: type: the value is"),
    ("multipleOf", {"multipleOf": 0.01}, 0.07, 0.075, "$: multipleOf: the number is not a multiple"),
    ("multipleOf", {"multipleOf": 3}, 3e20, 10**18 + 1, "$: multipleOf: the number is not a multiple"),
    ("large bounds", {"minimum": 2**53 + 1}, 2**53 + 1, 2**53, "$: minimum: the number is too small"),
    ("draft 4 bounds", {"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 1, "exclusiveMinimum": True}, 2, 1, "$: exclusiveM"),
    ("items before 2020", {**DRAFT7, "items": [{"type": "null"}], "additionalItems": False}, [None], [None, 1], "[1]: false: the"),
    ("items", {"prefixItems": [{"type": "null"}], "items": {"type": "string"}}, [None, "a"], [None, 1], "[1]: type: the"),
    ("false", {"properties": {"a": False}}, {}, {"a": 1}, "a: false: the schema allows no value here"),
    ("type", {"type": ["integer", "null"]}, 1.0, True, "$: type: the value is not of type integer or null"),
    ("enum", {"enum": [1, "a", [1, {"b": None}]]}, [1.0, {"b": None}], True, "$: enum: the value is not one of the listed"),
    ("$ref", {"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"type": "null"}}}, None, 1, "$: type: the value is not of type null"),
    ("$id", {"$id": "https://example.com/a", "$ref": "b", "$defs": {"b": {"$id": "b", "$ref": "#/$defs/c", "$defs": {"c": {"type": "null"}}}}}, None, 1, "$: type:"),
    ("$anchor", {"items": {"$ref": "#x"}, "$defs": {"x": {"$anchor": "x", "type": "null"}}}, [None], [1], "[0]: type:"),
    ("siblings of $ref in draft 7", {**DRAFT7, "definitions": {"a": True, "b": {"$ref": "#/definitions/a", "maximum": 0}}, "items": {"$ref": "#/definitions/b"}, "maxItems": 1}, [1], [1, 1], "$: maxItems"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("schema", "valid", "invalid", "violation"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_each_keyword(schema: Any, valid: Any, invalid: Any, violation: str) -> None:
    before = json.dumps(schema)
    assert found(schema, valid) is None
    assert str(found(schema, invalid)).startswith(violation)
    assert json.dumps(schema) == before
    validator = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    if schema.get("multipleOf") != 0.01:  # jsonschema divides floats
        assert (validator(schema).is_valid(valid), validator(schema).is_valid(invalid)) == (True, False)


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"pattern": "(?=a)b"}, "x"),
        ({"pattern": r"(a)\1"}, "x"),
        ({"pattern": r"^\s$"}, "\N{NO-BREAK SPACE}"),
        ({"patternProperties": {"(?<!a)": True}}, {"a": 1}),
        ({"$ref": "#/$defs/none"}, 1),
        ({"$ref": "https://example.com/schema.json"}, 1),
        ({"$ref": "http://[x"}, 1),
        ({"$ref": "#"}, 1),
        ({"$ref": 7}, 1),
        ({"$ref": "#/required", "required": ["a"]}, {"a": 1}),
        ({"$id": 5, "$ref": "#/$defs/a", "$defs": {"a": True}}, 1),
        ({"$schema": "https://example.com/draft"}, 1),
        ({"$schema": "http://json-schema.org/draft-03/schema#"}, 1),
        ({"properties": {"a": {"$schema": DRAFT7["$schema"], "pattern": "a"}}}, {"a": "b"}),
        ({"type": "any"}, 1),
        ({"type": 1}, 1),
        ({"properties": {"a": {"required": True}}}, {"a": {}}),
        ({"exclusiveMinimum": True, "minimum": 0}, 0.5),
        ({"items": [{"type": "null"}]}, [1]),
        ({"multipleOf": 0}, 1),
        ({"multipleOf": 10**2_000}, 10**2_000 + 1),
        ({"multipleOf": 0.1}, 0.30000000000000004),
        ({"minLength": -1}, "a"),
        ({"enum": 1}, 1),
        ({"allOf": 1}, 1),
        ({"dependentRequired": {"a": "b"}}, {"a": 1}),
        ([], 1),
        ({"allOf": [1]}, 1),
    ],
)
def test_unusual_schemas_get_no_verdict(schema: Any, value: Any) -> None:
    assert no_verdict(schema, value)
