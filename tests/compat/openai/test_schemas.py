"""compat/openai/schemas.py: which schemas are enforced, and which ones are refused."""

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from compat.openai.response_formats import enforced_schema
from compat.openai.schemas.policy import Enforcement
from compat.openai.schemas.size import MAX_SCHEMA_DEPTH
from tests.compat.openai.matching import fits

BEST, LENIENT = Enforcement.BEST_EFFORT, Enforcement.LENIENT
NAMED: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "string"}}}
X = {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"]}
Y = {"type": "object", "properties": {"y": {"type": "boolean"}}, "required": ["y"]}


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


ENDLESS = {"n": {"$ref": "#/$defs/n"}}
NEEDS = {"n": {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}, "required": ["n"]}}


@pytest.mark.parametrize("enforcement", [Enforcement.STRICT, BEST])
@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/n", "$defs": ENDLESS},
        {"$ref": "#"},
        {"$ref": "#/$defs/n", "$defs": NEEDS},
        {"type": "array", "minItems": 1, "items": {"$ref": "#"}},
        {"allOf": [{"$ref": "#/$defs/n"}, X], "$defs": NEEDS},
        {"type": "integer", "minimum": 5, "maximum": 1},
        {"type": "string", "pattern": "^[^\\s\\S]$"},
        {"enum": []},
        False,
    ],
)
def test_a_schema_without_a_valid_value_is_refused(schema: Any, enforcement: Enforcement) -> None:
    with pytest.raises(ValueError, match=r"unsatisfiable|Unsatisfiable|no value"):
        enforced_schema(schema, enforcement)
    assert enforced_schema(schema, LENIENT), "a tool that is not strict is never refused"


def test_a_property_without_a_finite_value_is_dropped() -> None:
    schema = {"type": "object", "properties": {"a": {"$ref": "#/$defs/n"}, "b": {"type": "null"}}, "$defs": NEEDS}
    assert fits(enforced_schema(schema), {"b": None})
    assert not fits(enforced_schema(schema), {"a": {}})


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


UNSUPPORTED: list[dict[str, Any]] = [
    {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
    {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "string"}},
    *({"type": "string", "format": name} for name in ("uri-reference", "path", "password", "binary", "int64")),
    *({"type": "string", "pattern": pattern} for pattern in ("^(?!\\s).+$", "\\bx\\b", "(a)\\1", "(")),
    {"not": {"type": "null"}},
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
def test_unsupported_keywords_are_refused_if_strict_and_dropped_if_not(part: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": {"a": part, "b": {"type": "integer"}}, "required": ["b"]}
    with pytest.raises(ValueError, match="cannot be enforced") as refused:
        enforced_schema(schema)
    assert "\n" not in str(refused.value)
    for enforcement in (BEST, LENIENT):
        enforced = enforced_schema(schema, enforcement)
        assert fits(enforced, {"b": 3})
        assert not fits(enforced, {"b": "three"}), "the rest is enforced"


SMALL, BIG = 2**53, 10**18


@given(st.integers(-BIG * 20, BIG * 20), st.integers(0, 5000), st.sampled_from(["", "exclusive"]))
@example(2**53 + 1, 2, "")
@example(2**53 + 1, 2, "exclusive")
@example(-(2**63), 2**64, "")
@settings(max_examples=150, deadline=None)
def test_integers_are_exactly_within_their_bounds(low: int, width: int, kind: str) -> None:
    lower, upper = (f"{kind}Minimum", f"{kind}Maximum") if kind else ("minimum", "maximum")
    schema = {"type": "integer", lower: low, upper: low + width}
    try:
        enforced = enforced_schema(schema)
    except ValueError:
        assert abs(low) + width > SMALL or width < 2, (
            "only bounds that no float represents, or that leave no value, are refused"
        )
        return
    validator = jsonschema.Draft202012Validator(schema)
    for value in {low + offset for offset in (-2, -1, 0, 1, width - 1, width, width + 1, width + 2)}:
        if fits(enforced, value):
            assert validator.is_valid(value)
        else:
            assert abs(value) > SMALL or not validator.is_valid(value)


@pytest.mark.parametrize("value", [2**53 + 1, -(2**53) - 1, 2**63, -(2**63), 12345678901234567890, 10**25])
def test_values_that_no_float_represents_are_refused(value: int) -> None:
    for schema in ({"const": value}, {"enum": [1, value]}, {"const": {"deep": [value]}}):
        for enforcement in (Enforcement.STRICT, BEST):
            with pytest.raises(ValueError, match="represented exactly"):
                enforced_schema(schema, enforcement)
        assert enforced_schema(schema, LENIENT) is not None


def test_sizes_are_limited() -> None:
    deep: Any = {}
    for _ in range(MAX_SCHEMA_DEPTH + 1):
        deep = {"items": deep}
    chain = {
        "$ref": "#/$defs/a0",
        "$defs": {f"a{index}": {"$ref": f"#/$defs/a{index + 1}", "minimum": 1} for index in range(3000)},
    }
    many = {
        "allOf": [
            {"anyOf": [{"type": "string", "pattern": f"^{first}{second}"} for second in range(3)]} for first in range(9)
        ]
    }
    for schema in (deep, chain, many, {"enum": list(range(30_000))}, {"const": "x" * 300_000}):
        with pytest.raises(ValueError, match="cannot be enforced"):
            enforced_schema(schema)
        assert enforced_schema(schema, LENIENT) == {"type": "object"}
    pure: dict[str, Any] = {f"a{index}": {"$ref": f"#/$defs/a{index + 1}"} for index in range(3000)}
    assert fits(enforced_schema({"$ref": "#/$defs/a0", "$defs": {**pure, "a3000": {"type": "null"}}}), None)
