"""Tests of compat/openai/schemas/problems.py: why llguidance cannot enforce a schema."""

import json
from typing import Any

import pytest

from compat.openai.grammars import MAX_FORM_BYTES
from compat.openai.schemas.problems import is_unsatisfiable, problem_of_document, problem_of_leaf


@pytest.mark.parametrize("schema", [{}, {"type": "object", "properties": {"a": {"type": "string"}}}, {"const": 1}])
def test_a_schema_that_llguidance_enforces_has_no_problem(schema: dict[str, Any]) -> None:
    assert problem_of_document(schema) == ""


def test_alternatives_that_do_not_exclude_each_other_are_explained() -> None:
    overlapping = {"oneOf": [{"type": "integer"}, {"type": "number"}]}
    assert problem_of_document(overlapping).startswith("oneOf is supported only if its alternatives exclude each other")
    assert problem_of_document({"oneOf": [{"type": "integer"}, {"type": "string"}]}) == ""


def test_a_schema_that_grew_too_large_is_not_compiled() -> None:
    schema = {"enum": ["x" * MAX_FORM_BYTES, "y" * MAX_FORM_BYTES]}
    assert problem_of_document(schema) == f"it has more than {2 * MAX_FORM_BYTES} bytes once its parts are joined"


@pytest.mark.parametrize(
    "schema",
    [{"type": "integer", "minimum": 5, "maximum": 1}, {"type": "string", "minLength": 5, "maxLength": 1}],
)
def test_contradictions_are_told_apart_from_unsupported_keywords(schema: dict[str, Any]) -> None:
    assert is_unsatisfiable(problem_of_document(schema))
    assert is_unsatisfiable(problem_of_leaf(json.dumps(schema)))


@pytest.mark.parametrize(
    "schema",
    [{"type": "string", "pattern": "(?!x)"}, {"type": "string", "format": "path"}, {"type": "string", "pattern": "("}],
)
def test_keywords_that_a_leaf_cannot_have(schema: dict[str, Any]) -> None:
    for _ in range(2):  # the second answer is from the cache
        problem = problem_of_leaf(json.dumps(schema))
        assert problem
        assert not is_unsatisfiable(problem)


def test_a_leaf_that_llguidance_enforces_has_no_problem() -> None:
    for schema in ({"type": "string", "pattern": "^a+$"}, {"type": "number", "minimum": 0.5}):
        assert problem_of_leaf(json.dumps(schema)) == ""
