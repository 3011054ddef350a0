"""Tests of compat/openai/schemas/keywords.py: which types a schema allows, and keywords that are not enforced."""

from typing import Any

import pytest

from compat.openai.response_formats import enforced_schema
from compat.openai.schemas.keywords import UNSUPPORTED, allows_type
from tests.compat.openai.schemas.answers import BEST, fits

OPERANDS: dict[str, Any] = {
    "not": {"type": "null"},
    "if": {"minimum": 1},
    "uniqueItems": True,
    "contains": {"const": 1},
    "minContains": 1,
    "maxContains": 1,
    "propertyNames": {"maxLength": 2},
    "dependentRequired": {"a": ["b"]},
    "dependentSchemas": {"a": {"required": ["b"]}},
    "dependencies": {"a": ["b"]},
    "unevaluatedItems": {"type": "null"},
    "$dynamicRef": "#",
    "$recursiveRef": "#",
}


@pytest.mark.parametrize(
    ("schema", "kind", "allows", "exactly"),
    [
        ({}, "string", True, False),
        ({"type": "string"}, "string", True, True),
        ({"type": ["string"]}, "string", True, True),
        ({"type": ["string", "null"]}, "string", True, False),
        ({"type": ["string", "null"]}, "integer", False, False),
        ({"type": "null"}, "string", False, False),
        ({"type": []}, "string", False, False),
        ({"type": 5}, "string", False, False),
        (True, "string", True, False),
    ],
)
def test_which_types_a_schema_allows(schema: Any, kind: str, allows: bool, exactly: bool) -> None:
    assert allows_type(schema, kind) is allows
    assert allows_type(schema, kind, exactly=True) is exactly


@pytest.mark.parametrize("keyword", [keyword for keyword in UNSUPPORTED if keyword not in ("then", "else")])
def test_each_unsupported_keyword_is_named_if_strict_and_dropped_if_not(keyword: str) -> None:
    part = {keyword: OPERANDS[keyword], "type": "integer"}
    schema = {"type": "object", "properties": {"a": part}, "required": ["a"]}
    with pytest.raises(ValueError, match="cannot be enforced") as refused:
        enforced_schema(schema)
    assert keyword in str(refused.value)
    enforced = enforced_schema(schema, BEST)
    assert fits(enforced, {"a": 1})
    assert not fits(enforced, {"a": "1"}), "the keywords beside it are enforced"


def test_branches_have_no_meaning_without_a_condition() -> None:
    for branch in ("then", "else"):
        assert not fits(enforced_schema({"type": "integer", branch: False}), "1")
        assert fits(enforced_schema({"type": "integer", branch: False}), 1)
        with pytest.raises(ValueError, match="is not supported"):
            enforced_schema({"type": "integer", "if": {"minimum": 1}, branch: {"maximum": 5}})


def test_items_that_need_not_be_unique_are_no_reason_to_refuse() -> None:
    assert fits(enforced_schema({"type": "array", "items": {"type": "integer"}, "uniqueItems": False}), [1, 1])
