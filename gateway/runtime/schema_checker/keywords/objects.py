"""Keywords for objects."""

from collections.abc import Iterator
from typing import Any

from gateway.runtime.schema_checker.check import Check, Node
from gateway.runtime.schema_checker.keywords.operands import (
    count_of,
    dict_of,
    names_of,
)
from gateway.runtime.schema_checker.violation import Violation, quoted


def check_properties(check: Check, node: Node, schemas: Any) -> Violation | None:
    if not isinstance(node.value, dict):
        return None
    # the smaller of both is searched: a schema with many properties is visited often
    fewer, more = (dict_of(schemas), node.value) if len(dict_of(schemas)) < len(node.value) else (node.value, schemas)
    check.budget.spend(len(fewer) // 8)
    for name in fewer:
        if name in more:
            if node.evaluated is not None:
                node.evaluated.keys.add(name)
            if (found := check.visit_child(node, schemas[name], name)) is not None:
                return found
    return None


def check_pattern_properties(check: Check, node: Node, schemas: Any) -> Violation | None:
    if not isinstance(node.value, dict):
        return None
    for expression, schema in dict_of(schemas).items():
        for name in node.value:
            if check.patterns.matches(expression, name, check.budget):
                if node.evaluated is not None:
                    node.evaluated.keys.add(name)
                if (found := check.visit_child(node, schema, name)) is not None:
                    return found
    return None


def check_additional_properties(check: Check, node: Node, schema: Any) -> Violation | None:
    if not isinstance(node.value, dict):
        return None
    if schema is True and node.evaluated is None:
        return None
    for name in _additional_names(check, node):
        if node.evaluated is not None:
            node.evaluated.keys.add(name)
        if schema is False:
            return node.violation("additionalProperties", f"the property {quoted(name)} is not allowed")
        if (found := check.visit_child(node, schema, name)) is not None:
            return found
    return None


def _additional_names(check: Check, node: Node) -> Iterator[str]:
    """Yield the properties that neither `properties` nor `patternProperties` describes."""
    named = dict_of(node.schema.get("properties", {}))
    expressions = dict_of(node.schema.get("patternProperties", {}))
    check.budget.spend(len(node.value) // 8)
    for name in node.value:
        if name not in named and not any(
            check.patterns.matches(expression, name, check.budget) for expression in expressions
        ):
            yield name


def check_property_names(check: Check, node: Node, schema: Any) -> Violation | None:
    if not isinstance(node.value, dict):
        return None
    for name in node.value:
        if check.visit(schema, name, node.place, node.scope, None) is not None:
            return node.violation("propertyNames", f"the name {quoted(name)} is not allowed")
    return None


def check_required(check: Check, node: Node, names: Any) -> Violation | None:
    if not isinstance(node.value, dict):
        return None
    missing = next((name for name in names_of(names, check.budget) if name not in node.value), None)
    return None if missing is None else node.violation("required", f"the property {quoted(missing)} is missing")


def check_dependent_required(check: Check, node: Node, dependencies: Any) -> Violation | None:
    if not isinstance(node.value, dict):
        return None
    check.budget.spend(len(dict_of(dependencies)) // 8)
    for name, needed in dependencies.items():
        if (
            name in node.value
            and (found := _check_needed_names(check, node, "dependentRequired", name, needed)) is not None
        ):
            return found
    return None


def _check_needed_names(check: Check, node: Node, keyword: str, name: str, needed: Any) -> Violation | None:
    """Return a violation if a property is missing that another one needs."""
    missing = next((name for name in names_of(needed, check.budget) if name not in node.value), None)
    if missing is None:
        return None
    return node.violation(keyword, f"the property {quoted(missing)} is missing, which {quoted(name)} needs")


def check_dependent_schemas(check: Check, node: Node, dependencies: Any) -> Violation | None:
    if not isinstance(node.value, dict):
        return None
    check.budget.spend(len(dict_of(dependencies)) // 8)
    for name, schema in dependencies.items():
        if name in node.value and (found := check.visit_part(node, schema)) is not None:
            return found
    return None


def check_dependencies(check: Check, node: Node, dependencies: Any) -> Violation | None:
    if not isinstance(node.value, dict):
        return None
    check.budget.spend(len(dict_of(dependencies)) // 8)
    for name, needed in dependencies.items():
        if name not in node.value:
            continue
        if isinstance(needed, list):
            found = _check_needed_names(check, node, "dependencies", name, needed)
        else:
            found = check.visit_part(node, needed)
        if found is not None:
            return found
    return None


def check_min_properties(check: Check, node: Node, minimum: Any) -> Violation | None:
    fails = isinstance(node.value, dict) and len(node.value) < count_of(minimum)
    return node.violation("minProperties", "there are too few properties") if fails else None


def check_max_properties(check: Check, node: Node, maximum: Any) -> Violation | None:
    fails = isinstance(node.value, dict) and len(node.value) > count_of(maximum)
    return node.violation("maxProperties", "there are too many properties") if fails else None


def check_unevaluated_properties(check: Check, node: Node, schema: Any) -> Violation | None:
    evaluated = node.evaluated
    if not isinstance(node.value, dict) or evaluated is None:
        return None
    check.budget.spend(len(node.value) // 8)
    for name in node.value:
        if name not in evaluated.keys and (found := check.visit_child(node, schema, name)) is not None:
            if schema is False:
                return node.violation("unevaluatedProperties", f"the property {quoted(name)} is not allowed")
            return found
    evaluated.keys.update(node.value)
    return None
