"""One check of a value against a schema: it visits the parts of the schema and calls a function for each keyword."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from gateway.runtime.schema_checker.canonical import EnumCache
from gateway.runtime.schema_checker.pattern_cache import PatternCache
from gateway.runtime.schema_checker.references import References, Scope, resolve
from gateway.runtime.schema_checker.violation import Place, Violation
from gateway.runtime.schema_checker.work_budget import NoVerdict, WorkBudget

_MAX_LEVELS = 150
"""Maximum number of schemas that are visited within each other. They take at most 4 frames of Python's stack each.

RecursionError must not be raised within `referencing`: the Rust code below it panics, which is no `Exception`.
"""


class UnknownValue:
    """Part of a value that is not known yet. No two of them are equal. It is valid for every schema."""


_UNDECIDED_BY_UNKNOWN = frozenset(
    {"not", "oneOf", "if", "contains", "propertyNames", "unevaluatedItems", "unevaluatedProperties"}
)
"""Keywords that a value may satisfy because a part of it violates another schema. If a part of the value is unknown,
their violations do not count."""


class EvaluatedParts:
    """Properties and items of a value that the keywords of a schema have evaluated, for `unevaluated…`."""

    __slots__ = ("all_items", "items", "keys")

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.items: set[int] = set()
        self.all_items = False

    def add(self, other: "EvaluatedParts") -> None:
        """Add the properties and items that a subschema has evaluated."""
        self.keys |= other.keys
        self.items |= other.items
        self.all_items = self.all_items or other.all_items


@dataclass(slots=True)
class Node:
    """A value and the schema that it is checked against. `evaluated`: collects the properties and items that are
    evaluated, if a schema asks for them."""

    schema: dict[str, Any]
    value: Any
    place: Place
    scope: Scope
    evaluated: EvaluatedParts | None

    def violation(self, keyword: str, why: str) -> Violation:
        """Return a violation of this value."""
        return Violation(self.place, keyword, why)


class Dialect(NamedTuple):
    """Draft of JSON Schema.

    `keywords`: functions by keyword. `last_keywords`: those that are checked after all others. `is_ref_alone`: whether
    keywords beside a `$ref` are ignored.
    """

    name: str
    keywords: "Mapping[str, Keyword]"
    last_keywords: "Mapping[str, Keyword]"
    is_ref_alone: bool


@dataclass(frozen=True, slots=True)
class CompiledSchema:
    """State that all checks against one schema share. `references`: None if the schema has no reference."""

    dialect: Dialect
    references: References | None
    patterns: PatternCache
    enums: EnumCache


class Check:
    """One check. Each `Keyword` function gets it."""

    def __init__(self, schema: CompiledSchema, budget: WorkBudget) -> None:
        self.budget = budget
        self.dialect = schema.dialect
        self.patterns = schema.patterns
        self.enums = schema.enums
        self._references = schema.references
        self._keywords = schema.dialect.keywords
        self._ref_alone = schema.dialect.is_ref_alone
        self._levels = 0
        self._unknown_visits = 0

    def visit(
        self,
        schema: Any,
        value: Any,
        place: Place,
        scope: Scope,
        evaluated: EvaluatedParts | None,
        *,
        is_entered: bool = False,
    ) -> Violation | None:
        """Return a violation of the schema by the value. `is_entered`: whether `scope` is the schema's own already."""
        if type(value) is UnknownValue:
            self.budget.spend(1)
            self._unknown_visits += 1
            return None
        if isinstance(schema, bool):
            self.budget.spend(1)
            return None if schema else Violation(place, "false", "the schema allows no value here")
        if not isinstance(schema, dict):
            raise NoVerdict("a schema is neither an object nor a boolean")
        self.budget.spend(1 + len(schema))
        if scope is not None and not is_entered and ("$id" in schema or "id" in schema):
            assert self._references is not None
            self.budget.spend(5)
            scope = self._references.enter(schema, scope)
        self._levels += 1
        if self._levels > _MAX_LEVELS:
            raise NoVerdict("the schema or the value is nested too deeply")
        found = self._apply(schema, value, place, scope, evaluated)
        self._levels -= 1
        return found

    def _apply(
        self, schema: dict[str, Any], value: Any, place: Place, scope: Scope, evaluated: EvaluatedParts | None
    ) -> Violation | None:
        if self._ref_alone and "$ref" in schema:
            return self._keywords["$ref"](self, Node(schema, value, place, scope, evaluated), schema["$ref"])
        own = EvaluatedParts() if "unevaluatedProperties" in schema or "unevaluatedItems" in schema else evaluated
        node = Node(schema, value, place, scope, own)
        unknown_before = self._unknown_visits
        for keyword, operand in schema.items():
            check = self._keywords.get(keyword)
            if check is not None and (found := check(self, node, operand)) is not None:
                if keyword in _UNDECIDED_BY_UNKNOWN and self._unknown_visits > unknown_before:
                    continue
                return found
        if own is not evaluated:
            for keyword, check in self.dialect.last_keywords.items():
                if keyword in schema and (found := check(self, node, schema[keyword])) is not None:
                    if self._unknown_visits > unknown_before:
                        continue
                    return found
            if evaluated is not None and own is not None:
                self.budget.spend((len(own.keys) + len(own.items)) // 8)
                evaluated.add(own)
        return None

    def visit_child(self, node: Node, schema: Any, key: str | int) -> Violation | None:
        """Return a violation of the schema by a property or an item of the node's value."""
        return self.visit(schema, node.value[key], (node.place, key), node.scope, None)

    def visit_part(self, node: Node, schema: Any) -> Violation | None:
        """Return a violation of a part of the node's schema that must be valid too."""
        return self.visit(schema, node.value, node.place, node.scope, node.evaluated)

    def is_part_valid(self, node: Node, schema: Any) -> bool:
        """Return whether the value is valid for a part of the node's schema that need not be valid."""
        own = None if node.evaluated is None else EvaluatedParts()
        if self.visit(schema, node.value, node.place, node.scope, own) is not None:
            return False
        if node.evaluated is not None and own is not None:
            self.budget.spend((len(own.keys) + len(own.items)) // 8)
            node.evaluated.add(own)
        return True

    def visit_reference(self, node: Node, lookup: Callable[[Scope], Any]) -> Violation | None:
        """Return a violation of the schema that a reference names."""
        self.budget.spend(5)
        resolved = resolve(node.scope, lookup)
        return self.visit(resolved.contents, node.value, node.place, resolved.resolver, node.evaluated, is_entered=True)


Keyword = Callable[[Check, Node, Any], Violation | None]
"""Function that checks one keyword. The last argument is the keyword's value in the schema."""
