"""Rewrite a client's schema into one that llguidance enforces."""

from typing import Any

from compat.openai.schemas.policy import Enforcement, Unenforceable
from compat.openai.schemas.problems import is_unsatisfiable, problem_of_document
from compat.openai.schemas.rewriter import SchemaRewriter
from compat.openai.schemas.size import check_size


def make_enforceable(schema: Any, enforcement: Enforcement = Enforcement.STRICT) -> dict[str, Any]:
    """Return the schema that llguidance enforces. Raises Unenforceable, unless the enforcement is lenient."""
    try:
        return _make_enforceable(schema, enforcement)
    except Unenforceable:
        if enforcement is Enforcement.LENIENT:
            return {"type": "object"}
        raise


def unenforced_keywords(schema: Any) -> list[str]:
    """Return the keywords that lenient enforcement drops; all keywords of the schema if it drops the whole schema."""
    if not isinstance(schema, dict):
        return []
    rewriter = SchemaRewriter(schema, Enforcement.LENIENT)
    try:
        check_size(schema)
        rewriter.document()
    except Unenforceable:
        return list(schema)
    return rewriter.dropped


def _make_enforceable(schema: Any, enforcement: Enforcement) -> dict[str, Any]:
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        raise Unenforceable(
            "a JSON schema must be an object" if schema is not False else "no value is valid for the schema false"
        )
    check_size(schema)
    result = SchemaRewriter(schema, enforcement).document()
    problem = problem_of_document(result)
    if problem and enforcement is not Enforcement.STRICT and not is_unsatisfiable(problem):
        result = SchemaRewriter(schema, enforcement, plain=True).document()
        problem = problem_of_document(result)
        if problem and not is_unsatisfiable(problem):  # references in a circle, beside other keywords
            return {"type": "object"} if schema.get("type") == "object" else {}
    if problem:
        raise Unenforceable(problem)
    return result
