"""SchemaChecker: every keyword, agreement with jsonschema, and hostile schemas and values."""

import json
import time
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gateway.runtime.schema_checker import MAX_MESSAGE, NoVerdict, OutOfSteps, SchemaChecker, Steps

DRAFT7 = {"$schema": "http://json-schema.org/draft-07/schema#"}


def found(schema: Any, value: Any, steps: int = 50_000) -> str | None:
    """Return the violation, as a sentence. Raises NoVerdict."""
    violation = SchemaChecker(schema).check(value, Steps(steps))
    return None if violation is None else str(violation)


def no_verdict(schema: Any, value: Any) -> str:
    with pytest.raises(NoVerdict) as raised:
        found(schema, value)
    return str(raised.value)


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


def test_a_violation_names_the_path_and_is_short() -> None:
    schema = {"properties": {"a b": {"items": {"properties": {"tags": {"uniqueItems": True}}}}}}
    assert found(schema, {"a b": [{}, {"tags": [1, 1]}]}) == '["a b"][1].tags: uniqueItems: the items are not unique'
    assert found({"required": ["x" * 1_000]}, {}) == f'$: required: the property "{"x" * 39}…" is missing'
    deep: Any = 1
    wide: Any = {"type": "null"}
    for _ in range(60):
        deep, wide = {"n" * 30: deep}, {"properties": {"n" * 30: wide}}
    text = str(found(wide, deep))
    assert len(text) < MAX_MESSAGE
    assert text.startswith("….nnn")
    many = {"type": ["null", "string", "boolean", "array", "object"], "enum": []}
    assert len(str(found({"propertyNames": many}, {'"\n' * 500: 1}))) < MAX_MESSAGE


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


def exponential(levels: int) -> dict[str, Any]:
    definitions = {f"d{level}": {"allOf": [{"$ref": f"#/$defs/d{level + 1}"}] * 2} for level in range(levels)}
    return {"$ref": "#/$defs/d0", "$defs": {**definitions, f"d{levels}": {"type": "integer"}}}


def nested(levels: int, value: Any = 1) -> Any:
    for _ in range(levels):
        value = [value]
    return value


def chain(levels: int) -> dict[str, Any]:
    """Return a schema whose `unevaluatedProperties` comes first and depends on a tree of dependent schemas."""
    definitions = {
        f"d{level}": {"dependentSchemas": {key: {"$ref": f"#/$defs/d{level + 1}"} for key in "ab"}}
        for level in range(levels)
    }
    return {"unevaluatedProperties": False, "$ref": "#/$defs/d0", "$defs": {**definitions, f"d{levels}": True}}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (exponential(40), 1),
        (chain(40), {"a": 1, "b": 2}),
        ({"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}, 1),
        ({"items": {"anyOf": [{"required": [f"r{index}"]} for index in range(5_000)]}}, [{}] * 5_000),
        ({"allOf": [{"uniqueItems": True} for _ in range(1_000)]}, list(range(10_000))),
        ({"items": {"enum": [[index] for index in range(5_000)]}}, [nested(100)] * 50_000),
        ({"additionalProperties": False, "patternProperties": {f"^{index}(abc|def){{0,90}}$": True for index in range(999)}}, {f"q{index}": 1 for index in range(999)}),
        ({"unevaluatedProperties": {"type": "string"}, "allOf": [{"properties": {f"p{index}": True}} for index in range(5_000)]}, {f"q{index}": 1 for index in range(10_000)}),
        ({"items": {"x" * index: True for index in range(2_000)}}, [1] * 10_000),
        ({"anyOf": [{"pattern": f"^(x+x+){{1,40}}y{index}"} for index in range(2_000)]}, "x" * 100_000),
        ({"properties": {f"p{index}": True for index in range(19_999)}, "x": [1] * 9_000}, {}),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}}, nested(1_000)),
        ({"const": nested(900)}, nested(900)),
    ],
)  # fmt: skip
def test_hostile_schemas_and_values_get_no_verdict_in_little_time(schema: Any, value: Any) -> None:
    began = time.process_time()
    steps = Steps(50_000)
    try:
        SchemaChecker(schema).check(value, steps)
    except NoVerdict:
        pass
    else:
        assert not schema.get("properties"), "a schema that is too large is not used"
    assert time.process_time() - began < 1.5


def test_a_catastrophic_pattern_takes_linear_time() -> None:
    began = time.process_time()
    assert found({"pattern": "^(a+)+$"}, "a" * 50_000 + "b") == "$: pattern: the string does not match"
    assert time.process_time() - began < 0.5


def test_unique_items_take_linear_time() -> None:
    values = [*range(50_000), *[f"{index}" for index in range(50_000)]]
    assert found({"uniqueItems": True}, values) is None
    assert found({"uniqueItems": True}, [*values, 49_999.0]) == "$: uniqueItems: the items are not unique"


def test_deep_values_are_checked_as_deep_as_the_schema_goes() -> None:
    assert no_verdict({"$ref": "#/$defs/a", "$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}}, nested(1_000))
    assert found({"items": {"type": "array"}}, nested(1_000)) is None
    tree = {"$ref": "#/$defs/a", "$defs": {"a": {"items": {"$ref": "#/$defs/a"}, "not": {"const": 1}}}}
    assert (
        found(tree, nested(30)) == f"{'[0]' * 30}: not: the value is valid for a schema for which it must not be valid"
    )


def test_a_checker_is_reusable_after_its_budget_was_used_up() -> None:
    checker = SchemaChecker({"items": {"$ref": "#/$defs/a"}, "$defs": {"a": {"type": "integer"}}})
    for steps in range(0, 60, 3):
        try:
            assert checker.check([1, 2, "x"], Steps(steps)) is not None
        except OutOfSteps:
            assert steps < 59
    assert str(checker.check([1, 2, "x"], Steps(1_000))) == "[2]: type: the value is not of type integer"


# agreement with jsonschema

NAMES = st.sampled_from(["a", "b", "ab", "c"])
SCALARS = st.sampled_from([None, True, False, 0, 1, 2, 3, -1, 1.0, 2.5, 10**17, "", "a", "ab", "b1"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
TYPES = st.sampled_from(["null", "boolean", "integer", "number", "string", "array", "object"])
PATTERNS = st.sampled_from(["^a", "b$", "^$", "[0-9]", "^(a|b)+$"])
SMALL = st.integers(0, 3)
REFERENCES = st.sampled_from(["#", "#/$defs/x", "#/$defs/y", "#named"])


def keywords(inner: st.SearchStrategy[Any], *, unevaluated: bool) -> dict[str, st.SearchStrategy[Any]]:
    lists = st.lists(inner, min_size=1, max_size=3)
    some = {
        "type": TYPES | st.lists(TYPES, min_size=1, max_size=3, unique=True),
        "enum": st.lists(VALUES, max_size=4),
        "const": VALUES,
        "allOf": lists,
        "anyOf": lists,
        "oneOf": lists,
        "not": inner,
        "if": inner,
        "then": inner,
        "else": inner,
        "minimum": SMALL,
        "maximum": SMALL,
        "exclusiveMinimum": SMALL,
        "exclusiveMaximum": SMALL,
        "multipleOf": st.sampled_from([1, 2, 3, 0.5, 2.5]),
        "minLength": SMALL,
        "maxLength": SMALL,
        "pattern": PATTERNS,
        "items": inner,
        "prefixItems": lists,
        "contains": inner,
        "minContains": SMALL,
        "maxContains": SMALL,
        "uniqueItems": st.booleans(),
        "minItems": SMALL,
        "maxItems": SMALL,
        "properties": st.dictionaries(NAMES, inner, max_size=3),
        "patternProperties": st.dictionaries(PATTERNS, inner, max_size=2),
        "additionalProperties": inner,
        "propertyNames": inner,
        "required": st.lists(NAMES, max_size=2, unique=True),
        "dependentRequired": st.dictionaries(NAMES, st.lists(NAMES, max_size=2, unique=True), max_size=2),
        "dependentSchemas": st.dictionaries(NAMES, inner, max_size=2),
        "minProperties": SMALL,
        "maxProperties": SMALL,
        "$ref": REFERENCES,
        "description": st.just("A value."),
    }
    if unevaluated:
        some |= {"unevaluatedProperties": inner, "unevaluatedItems": inner}
    return some


def objects(inner: st.SearchStrategy[Any], *, unevaluated: bool) -> st.SearchStrategy[Any]:
    known = keywords(inner, unevaluated=unevaluated)

    def of(names: list[str]) -> st.SearchStrategy[Any]:
        return st.fixed_dictionaries({name: known[name] for name in names})

    return st.lists(st.sampled_from(sorted(known)), min_size=1, max_size=3, unique=True).flatmap(of)


def schemas(*, unevaluated: bool = False) -> st.SearchStrategy[Any]:
    inner = st.recursive(st.booleans(), lambda schema: objects(schema, unevaluated=unevaluated), max_leaves=6)
    named = inner.map(
        lambda schema: {**schema, "$anchor": "named"} if isinstance(schema, dict) else {"$anchor": "named"}
    )
    definitions = st.fixed_dictionaries({"x": inner, "y": named})
    return st.tuples(objects(inner, unevaluated=unevaluated), definitions).map(
        lambda pair: {**pair[0], "$defs": pair[1]}
    )


def assert_same_verdict(schema: Any, value: Any) -> None:
    try:
        verdict = found(schema, value) is None
    except NoVerdict:
        return
    try:
        expected = jsonschema.Draft202012Validator(schema).is_valid(value)
    except BaseException as error:  # it follows circular references until the stack ends
        if not isinstance(error, RecursionError) and type(error).__name__ != "PanicException":
            raise
        return
    assert verdict == expected


SETTINGS = settings(max_examples=1_000, deadline=None, suppress_health_check=list(HealthCheck))


@SETTINGS
@given(schemas(), VALUES)
@example({"uniqueItems": True}, [1, True, 1.0])
@example({"enum": [0]}, False)
def test_verdicts_agree_with_jsonschema(schema: Any, value: Any) -> None:
    assert_same_verdict(schema, value)


@SETTINGS
@given(schemas(unevaluated=True), VALUES)
def test_verdicts_on_unevaluated_properties_and_items_agree_with_jsonschema(schema: Any, value: Any) -> None:
    assert_same_verdict(schema, value)
