"""Tests of compat/openai/schemas/parts.py: the parts that describe a value together."""

from typing import Any

import pytest

from compat.openai.schemas import parts
from compat.openai.schemas.definitions import Definitions
from compat.openai.schemas.parts import PartFinder
from compat.openai.schemas.policy import RefusalPolicy, Unenforceable
from tests.compat.openai.schemas.answers import LENIENT


def finder(root: Any) -> PartFinder:
    return PartFinder(Definitions(root, RefusalPolicy(LENIENT)))


def found(root: dict[str, Any]) -> list[tuple[str, bool]]:
    """Return the titles of the parts, and whether each is a choice."""
    return sorted((part["title"], is_choice) for part, is_choice in finder(root).parts(root))


def test_joined_parts_are_found_through_references_and_choices() -> None:
    root = {
        "title": "root",
        "allOf": [{"title": "all", "anyOf": [{"title": "any", "allOf": [{"title": "all of any"}]}]}],
        "oneOf": [{"title": "one"}, True],
        "$ref": "#/$defs/target",
        "properties": {"x": {"title": "not a part: it describes another value"}},
        "items": {"title": "neither"},
        "$defs": {"target": {"title": "target", "anyOf": "malformed"}},
    }
    assert found(root) == [
        ("all", False),
        ("all of any", True),
        ("any", True),
        ("one", True),
        ("root", False),
        ("target", False),
    ]


def test_each_part_is_visited_once() -> None:
    shared = {"title": "shared"}
    root = {"title": "root", "allOf": [shared, shared, {"title": "again", "$ref": "#"}]}
    assert found(root) == [("again", False), ("root", False), ("shared", False)]


def test_values_that_are_no_schemas_have_no_parts() -> None:
    for node in (True, None, 5, "x", [{}]):
        assert list(finder({}).parts(node)) == []


def test_the_parts_that_describe_each_property_are_counted() -> None:
    root = {
        "properties": {"a": True, "b": True},
        "required": ["a", "c", 5],
        "anyOf": [{"properties": {"a": True}, "required": "malformed"}, {"properties": ["malformed"]}],
    }
    assert dict(finder(root).count_names(root)) == {"a": 2, "b": 1, "c": 0}


@pytest.mark.parametrize(
    ("schema", "allows"),
    [
        ({"properties": {"a": True}}, False),
        ({"additionalProperties": False}, True),
        ({"patternProperties": {}}, True),
        ({"unevaluatedProperties": False}, False),
        ({"unevaluatedProperties": {"type": "null"}}, True),
        ({"allOf": [{"anyOf": [{"additionalProperties": {}}]}]}, True),
        ({"properties": {"a": {"additionalProperties": True}}}, False),
    ],
)
def test_whether_properties_without_a_name_are_described(schema: dict[str, Any], allows: bool) -> None:
    assert finder(schema).allows_others(schema) is allows


def test_visits_are_limited_for_the_whole_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MAX_VISITS", 10)
    root = {"allOf": [{} for _ in range(4)]}
    limited = finder(root)
    for _ in range(2):
        assert len(list(limited.parts(root))) == 5
    with pytest.raises(Unenforceable, match="joins too many parts"):
        list(limited.parts(root))
