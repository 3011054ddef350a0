"""Checker of values against one schema."""

from typing import Any

from gateway.runtime.schema_checker.canonical import EnumCache
from gateway.runtime.schema_checker.check import Check, CompiledSchema
from gateway.runtime.schema_checker.dialects import DEFAULT_DIALECT, find_dialect
from gateway.runtime.schema_checker.pattern_cache import PatternCache
from gateway.runtime.schema_checker.references import KEYWORDS, References
from gateway.runtime.schema_checker.violation import Violation
from gateway.runtime.schema_checker.work_budget import NoVerdict, WorkBudget

_MAX_NODES = 20_000
"""Maximum number of objects, lists and scalar values in a schema that is used for checks."""


class SchemaChecker:
    """Checker of values against one schema. It keeps the schema as it is, and does no work before the first check."""

    def __init__(self, schema: Any) -> None:
        self._schema = schema
        self._compiled: CompiledSchema | None = None

    def check(self, value: Any, budget: WorkBudget) -> Violation | None:
        """Return a violation; None if the value is valid. Raises NoVerdict, and nothing else.

        Parts of the value may be an `UnknownValue`: a violation holds whatever they become."""
        try:
            if self._compiled is None:
                self._compiled = _compile(self._schema, budget)
            references = self._compiled.references
            scope = None if references is None else references.root
            return Check(self._compiled, budget).visit(self._schema, value, None, scope, None, is_entered=True)
        except RecursionError:
            raise NoVerdict("the schema or the value is nested too deeply") from None


def _compile(schema: Any, budget: WorkBudget) -> CompiledSchema:
    """Raise NoVerdict if the schema cannot be used for checks."""
    nodes, has_references, stack = 0, False, [schema]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            stack += node.values()
            has_references = has_references or not KEYWORDS.isdisjoint(node)
        elif isinstance(node, list):
            stack += node
        nodes += 1
        if nodes + len(stack) > _MAX_NODES:
            raise NoVerdict("the schema is too large")
    budget.spend(nodes // 8)
    dialect = find_dialect(schema.get("$schema", DEFAULT_DIALECT) if isinstance(schema, dict) else DEFAULT_DIALECT)
    references = None
    if has_references:
        budget.spend(nodes * 2)
        references = References(schema, dialect.name)
    return CompiledSchema(dialect, references, PatternCache(), EnumCache())
