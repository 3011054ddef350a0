"""compat/openai/response_formats.py, schemas.py, lark.py, grammars.py: what is enforced, and what is refused instead."""

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher

from compat.openai.grammars import _bytes, in_words
from compat.openai.lark import MAX_DEFINITIONS
from compat.openai.response_formats import held_to, one_of, valid_grammar, valid_regex, valid_schema
from compat.openai.schemas import MAX_SCHEMA_DEPTH, Enforcement

BEST, LENIENT = Enforcement.BEST_EFFORT, Enforcement.LENIENT
NAMED: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "string"}}}
X = {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"]}
Y = {"type": "object", "properties": {"y": {"type": "boolean"}}, "required": ["y"]}


def fits(schema: Any, value: Any) -> bool:
    """Whether an answer that is held to the rewritten schema may be this value."""
    grammar = LLMatcher.grammar_from_json_schema(
        json.dumps(schema), overrides={"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    )
    matcher = LLMatcher(_bytes(), grammar)
    assert not matcher.is_error(), matcher.get_error()
    tokens = list(json.dumps(value).encode())
    return matcher.try_consume_tokens(tokens) == len(tokens) and bool(matcher.is_accepting())


@pytest.mark.parametrize(
    ("schema", "valid", "more"),
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
def test_objects_have_the_properties_that_the_schema_and_what_it_inherits_name(
    schema: dict[str, Any], valid: Any, more: Any
) -> None:
    jsonschema.validate(valid, schema)
    assert fits(held_to(schema), valid)
    assert not fits(held_to(schema), more)


def test_an_inherited_object_within_one_is_joined_before_it_is_closed() -> None:
    left = {"type": "object", "properties": {"in": X}, "required": ["in"]}
    right = {"type": "object", "properties": {"in": Y}, "required": ["in"]}
    schema = {"$defs": {"L": left}, "allOf": [{"$ref": "#/$defs/L"}, right]}
    assert fits(held_to(schema), {"in": {"x": True, "y": True}})
    assert not fits(held_to(schema), {"in": {"x": True}})


@pytest.mark.parametrize(
    "schema",
    [{"type": "object"}, {**NAMED, "additionalProperties": True}, {"allOf": [NAMED], "additionalProperties": True}],
)
def test_objects_that_speak_of_others_stay_open(schema: dict[str, Any]) -> None:
    assert fits(held_to(schema), {"other": 1})


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
        held_to(schema, enforcement)
    assert held_to(schema, LENIENT), "a tool that is not strict is never refused"


def test_a_property_that_never_ends_is_left_out() -> None:
    schema = {"type": "object", "properties": {"a": {"$ref": "#/$defs/n"}, "b": {"type": "null"}}, "$defs": NEEDS}
    assert fits(held_to(schema), {"b": None})
    assert not fits(held_to(schema), {"a": {}})


def test_a_pattern_of_literal_names_is_those_properties() -> None:
    score = {"type": "integer", "minimum": 0}
    schema = {
        "type": "object",
        "properties": {"s": score},
        "patternProperties": {"^(s|t)$": {"maximum": 9}},
        "additionalProperties": False,
    }
    made = held_to(schema)
    for value, valid in (({"s": 5}, True), ({"s": 50}, False), ({"s": 5, "t": 1}, True), ({"u": 1}, False)):
        assert fits(made, value) is valid
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
def test_what_cannot_be_enforced_is_refused_if_strict_and_dropped_if_not(part: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": {"a": part, "b": {"type": "integer"}}, "required": ["b"]}
    with pytest.raises(ValueError, match="cannot be enforced") as refused:
        held_to(schema)
    assert "\n" not in str(refused.value)
    for enforcement in (BEST, LENIENT):
        made = held_to(schema, enforcement)
        assert fits(made, {"b": 3})
        assert not fits(made, {"b": "three"}), "the rest is enforced"


SMALL, BIG = 2**53, 10**18


@given(st.integers(-BIG * 20, BIG * 20), st.integers(0, 5000), st.sampled_from(["", "exclusive"]))
@example(2**53 + 1, 2, "")
@example(2**53 + 1, 2, "exclusive")
@example(-(2**63), 2**64, "")
@settings(max_examples=150, deadline=None)
def test_integers_are_within_their_bounds_to_the_last_digit(low: int, width: int, kind: str) -> None:
    least, most = (f"{kind}Minimum", f"{kind}Maximum") if kind else ("minimum", "maximum")
    schema = {"type": "integer", least: low, most: low + width}
    try:
        made = held_to(schema)
    except ValueError:
        assert abs(low) + width > SMALL or width < 2, (
            "only bounds that are no floats, or that leave nothing, are refused"
        )
        return
    validator = jsonschema.Draft202012Validator(schema)
    for value in {low + offset for offset in (-2, -1, 0, 1, width - 1, width, width + 1, width + 2)}:
        if fits(made, value):
            assert validator.is_valid(value)
        else:
            assert abs(value) > SMALL or not validator.is_valid(value)


@pytest.mark.parametrize("value", [2**53 + 1, -(2**53) - 1, 2**63, -(2**63), 12345678901234567890, 10**25])
def test_values_that_a_float_does_not_hold_are_refused(value: int) -> None:
    for schema in ({"const": value}, {"enum": [1, value]}, {"const": {"deep": [value]}}):
        for enforcement in (Enforcement.STRICT, BEST):
            with pytest.raises(ValueError, match="kept exactly"):
                held_to(schema, enforcement)
        assert held_to(schema, LENIENT) is not None


def test_sizes_are_bounded() -> None:
    deep: Any = {}
    for _ in range(MAX_SCHEMA_DEPTH + 1):
        deep = {"items": deep}
    chain = {
        "$ref": "#/$defs/a0",
        "$defs": {f"a{at}": {"$ref": f"#/$defs/a{at + 1}", "minimum": 1} for at in range(3000)},
    }
    many = {"allOf": [{"anyOf": [{"type": "string", "pattern": f"^{at}{one}"} for one in range(3)]} for at in range(9)]}
    for schema in (deep, chain, many, {"enum": list(range(30_000))}, {"const": "x" * 300_000}):
        with pytest.raises(ValueError, match="cannot be enforced"):
            held_to(schema)
        assert held_to(schema, LENIENT) == {"type": "object"}
    pure: dict[str, Any] = {f"a{at}": {"$ref": f"#/$defs/a{at + 1}"} for at in range(3000)}
    assert fits(held_to({"$ref": "#/$defs/a0", "$defs": {**pure, "a3000": {"type": "null"}}}), None)


@pytest.mark.parametrize(
    "text", ["[" * 5000 + "]" * 5000, "{", "[1]", "3", '{"a": NaN}', "x" * 300_000, '{"a": "\ud800"}']
)
def test_a_schema_as_text_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="schema"):
        valid_schema(text)


@pytest.mark.parametrize(
    ("grammar", "why"),
    [
        ("start: A\nA: /(.*a.{18})/ & /(.*b.{17})/", "intersection"),
        ("start: A\nA: ~/(.*c.{16})/", "complement"),
        ('start: a\na: "x" a', "no finite text"),
        ('start: "x" a*\na: b\nb: a "y"', "no finite text"),
        ('start: %json {"const": -9223372036854775808}', "kept exactly"),
        ("start: A0\n" + "\n".join(f"A{at}: A{at + 1}" for at in range(MAX_DEFINITIONS + 1)) + '\nA1001: "x"', "rules"),
        ('start: "' + "x" * 70_000 + '"', "bytes"),
        ("start: /[^\\s\\S]/", "no text fits"),
        ("start", "Expected"),
        ("start: " + "(" * 5000, "cannot be enforced"),
    ],
)
def test_grammars_that_cannot_be_enforced_are_refused(grammar: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as refused:
        valid_grammar(grammar)
    assert len(str(refused.value)) < 400
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "grammar",
    [
        'start: a b?\na: "x" | "(" a ")"\n// c & ~\nb[lazy]: "q"i ("," "z"){2,3} -> hi',
        '%import common.INT\nstart: INT /[&~]/ "&"',
        'start: %lark {\nstart: "a"\n} "b"',
        'start: <think> "a"',
        'start: start start | "a" | ""',
        'start: x | y\nx: "a" x | z\ny: [x]\nz: "1".."3"',
    ],
)
def test_other_grammars_are_taken(grammar: str) -> None:
    assert valid_grammar(grammar) == grammar


def test_a_schema_within_a_grammar_is_rewritten() -> None:
    assert json.loads(valid_grammar(f"start: %json {json.dumps(NAMED)}").removeprefix("start: %json ")) == held_to(
        NAMED
    )


@pytest.mark.parametrize("pattern", ["[^\\s\\S]", "a[^\\s\\S]b", "(", "(a)\\1", "x" * 70_000])
def test_patterns_that_cannot_be_enforced_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="regex") as refused:
        valid_regex(pattern)
    assert len(str(refused.value)) < 400


def test_choices_are_bounded() -> None:
    for choices in ([f"text number {at}" for at in range(100_000)], ["x" * 300_000], ["a", ""]):
        with pytest.raises(ValueError, match="choice"):
            one_of(choices)
    grammar = one_of([f"text number {at}" for at in range(10_000)])
    matcher = LLMatcher(_bytes(), LLMatcher.grammar_from_lark(grammar))
    assert matcher.consume_tokens(list(b"text number 9999"))
    assert matcher.is_accepting()


@given(st.text())
@example("panic: assertion failed\n<backtrace>\n   0: <unknown>")
@example("NoExtensionBias\n<non-verbose/>")
@example("regex parse error:\n    (\n    ^\nerror: unclosed group")
def test_what_the_library_says_is_one_short_line(error: str) -> None:
    told = in_words(error)
    assert 0 < len(told) <= 201
    assert told.isprintable()
    assert "backtrace" not in told
    assert "panic" not in told
