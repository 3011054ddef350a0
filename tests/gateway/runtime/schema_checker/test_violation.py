"""Tests of gateway/runtime/schema_checker/violation.py: messages are short and name the place."""

from typing import Any

import pytest

from gateway.runtime.schema_checker.violation import MAX_MESSAGE, Violation
from tests.gateway.runtime.schema_checker.verdicts import found


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
    ("place", "path"),
    [
        (None, "$"),
        ((None, 3), "[3]"),
        (((None, "a"), "b_1"), "a.b_1"),
        (((None, "a"), "1b"), 'a["1b"]'),
        ((None, ""), '[""]'),
        ((None, "\u202e"), '["\\u202e"]'),
    ],
)
def test_the_path_of_a_place(place: Any, path: str) -> None:
    assert str(Violation(place, "type", "why")) == f"{path}: type: why"
