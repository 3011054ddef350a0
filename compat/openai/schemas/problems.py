"""Why llguidance cannot enforce a rewritten schema, or a part of it."""

import json
from typing import Any

from compat.openai.grammars import MAX_FORM_BYTES, problem_of_schema
from compat.short_cache import cache_short


def problem_of_document(schema: dict[str, Any]) -> str:
    """Return why the whole schema cannot be enforced; "" if it can."""
    text = json.dumps(schema)
    if len(text) > 2 * MAX_FORM_BYTES:
        return f"it has more than {2 * MAX_FORM_BYTES} bytes once its parts are joined"
    problem = problem_of_schema(text)
    if problem.startswith("oneOf"):
        return "oneOf is supported only if its alternatives exclude each other by a constant or a type"
    return problem


def is_unsatisfiable(problem: str) -> bool:
    """Return whether the problem is that the schema has no valid value: dropping keywords must not hide that."""
    return "nsatisfiable" in problem


@cache_short(4096, 1_000)
def problem_of_leaf(schema: str) -> str:
    """Return why llguidance cannot enforce the keywords of a string or number together; "" if it can."""
    return problem_of_schema(schema)
