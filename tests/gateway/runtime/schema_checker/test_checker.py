"""Tests of gateway/runtime/schema_checker/checker.py: agreement with jsonschema, and hostile schemas and values."""

from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, assume, example, given, reject, settings
from hypothesis import strategies as st

from gateway.runtime.schema_checker.check import UnknownValue
from gateway.runtime.schema_checker.checker import SchemaChecker
from gateway.runtime.schema_checker.work_budget import BudgetExceeded, NoVerdict, WorkBudget
from tests.gateway.runtime.schema_checker.verdicts import found, nested, no_verdict


def exponential(levels: int) -> dict[str, Any]:
    definitions = {f"d{level}": {"allOf": [{"$ref": f"#/$defs/d{level + 1}"}] * 2} for level in range(levels)}
    return {"$ref": "#/$defs/d0", "$defs": {**definitions, f"d{levels}": {"type": "integer"}}}


def chain(levels: int) -> dict[str, Any]:
    """Return a schema whose `unevaluatedProperties` comes first and depends on a tree of dependent schemas."""
    definitions = {
        f"d{level}": {"dependentSchemas": {key: {"$ref": f"#/$defs/d{level + 1}"} for key in "ab"}}
        for level in range(levels)
    }
    return {"unevaluatedProperties": False, "$ref": "#/$defs/d0", "$defs": {**definitions, f"d{levels}": True}}


NUMBERS = list(range(10_000))


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (exponential(40), 1),
        (chain(40), {"a": 1, "b": 2}),
        ({"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}, 1),
        ({"items": {"anyOf": [*({"required": [f"r{index}"]} for index in range(5_000)), {}]}}, [{}] * 100_000),
        ({"items": {"allOf": [{"uniqueItems": True} for _ in range(5_000)]}}, [NUMBERS] * 100),
        ({"items": {"enum": [*([index] for index in range(2_000)), NUMBERS]}}, [NUMBERS] * 1_000_000),
        ({"items": {"additionalProperties": {}, "patternProperties": {f"^{index}(abc|def){{0,90}}$": True for index in range(999)}}}, [{f"q{index}": 1 for index in range(999)}] * 1_000),
        ({"items": {"unevaluatedProperties": {"type": "integer"}, "allOf": [{"properties": {f"p{index}": True}} for index in range(5_000)]}}, [{f"q{index}": 1 for index in range(10_000)}] * 100_000),
        ({"items": {"items": {f"x{index}": True for index in range(19_000)}}}, [NUMBERS] * 200),
        ({"items": {"anyOf": [*({"pattern": f"^(x+x+){{1,40}}y{index}"} for index in range(2_000)), {}]}}, ["x" * 100_000] * 10_000),
        ({"properties": {f"p{index}": True for index in range(19_999)}, "x": [1] * 9_000}, {}),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}}, nested(1_000)),
        ({"const": nested(900)}, nested(900)),
    ],
    ids=range(13),
)  # fmt: skip
def test_hostile_schemas_and_values_get_no_verdict(schema: Any, value: Any) -> None:
    """Check that the budget ends the checks. Where the size of the value matters, a check whose work the budget does
    not bound takes more than 15 minutes, and the test's time limit ends it."""
    with pytest.raises(NoVerdict):
        SchemaChecker(schema).check(value, WorkBudget(50_000))


def test_deep_values_are_checked_as_deep_as_the_schema_goes() -> None:
    assert no_verdict({"$ref": "#/$defs/a", "$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}}, nested(1_000))
    assert found({"items": {"type": "array"}}, nested(1_000)) is None
    tree = {"$ref": "#/$defs/a", "$defs": {"a": {"items": {"$ref": "#/$defs/a"}, "not": {"const": 1}}}}
    assert (
        found(tree, nested(30)) == f"{'[0]' * 30}: not: the value is valid for a schema for which it must not be valid"
    )


def test_a_checker_is_reusable_after_its_budget_was_used_up() -> None:
    checker = SchemaChecker({"items": {"$ref": "#/$defs/a"}, "$defs": {"a": {"type": "integer"}}})
    for units in range(0, 60, 3):
        try:
            assert checker.check([1, 2, "x"], WorkBudget(units)) is not None
        except BudgetExceeded:
            assert units < 59
    assert str(checker.check([1, 2, "x"], WorkBudget(1_000))) == "[2]: type: the value is not of type integer"


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


SETTINGS = settings(max_examples=1_000, suppress_health_check=list(HealthCheck))


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


def with_unknown(value: Any, path: list[int]) -> Any:
    """Return the value with an unknown one at a place that the numbers choose."""
    if not path or not isinstance(value, dict | list) or not value:
        return UnknownValue()
    key: Any = list(value)[path[0] % len(value)] if isinstance(value, dict) else path[0] % len(value)
    copy = value.copy()
    copy[key] = with_unknown(value[key], path[1:])
    return copy


@SETTINGS
@given(schemas(unevaluated=True), VALUES, st.lists(st.integers(0, 10), max_size=3))
def test_a_valid_value_stays_valid_if_a_part_becomes_unknown(schema: Any, value: Any, path: list[int]) -> None:
    try:
        assume(found(schema, value) is None)
        assert found(schema, with_unknown(value, path)) is None
    except NoVerdict:
        reject()
