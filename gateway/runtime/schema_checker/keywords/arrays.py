"""Keywords for arrays."""

from typing import Any

from gateway.runtime.schema_checker.canonical import canonical_form
from gateway.runtime.schema_checker.check import Check, Node
from gateway.runtime.schema_checker.keywords.operands import (
    bool_of,
    count_of,
    list_of,
)
from gateway.runtime.schema_checker.violation import Violation


def check_items(check: Check, node: Node, schema: Any) -> Violation | None:
    return _check_items_from(check, node, schema, len(list_of(node.schema.get("prefixItems", []))))


def check_prefix_items(check: Check, node: Node, schemas: Any) -> Violation | None:
    if not isinstance(node.value, list):
        return None
    for index, schema in enumerate(list_of(schemas)[: len(node.value)]):
        if node.evaluated is not None:
            node.evaluated.items.add(index)
        if (found := check.visit_child(node, schema, index)) is not None:
            return found
    return None


def check_items_of_draft7(check: Check, node: Node, schemas: Any) -> Violation | None:
    return (check_prefix_items if isinstance(schemas, list) else check_items)(check, node, schemas)


def check_additional_items(check: Check, node: Node, schema: Any) -> Violation | None:
    before = node.schema.get("items")
    return _check_items_from(check, node, schema, len(before)) if isinstance(before, list) else None


def _check_items_from(check: Check, node: Node, schema: Any, begin: int) -> Violation | None:
    """Return a violation by one of the items after the first `begin`."""
    if not isinstance(node.value, list):
        return None
    if node.evaluated is not None:
        node.evaluated.all_items = True
    if schema is True:
        return None
    for index in range(begin, len(node.value)):
        if (found := check.visit_child(node, schema, index)) is not None:
            return found
    return None


def check_contains(check: Check, node: Node, schema: Any) -> Violation | None:
    minimum = count_of(node.schema.get("minContains", 1))
    maximum = count_of(node.schema["maxContains"]) if "maxContains" in node.schema else None
    return _check_valid_count(check, node, schema, minimum, maximum)


def check_contains_of_draft7(check: Check, node: Node, schema: Any) -> Violation | None:
    return _check_valid_count(check, node, schema, 1, None)


def _check_valid_count(check: Check, node: Node, schema: Any, minimum: int, maximum: int | None) -> Violation | None:
    if not isinstance(node.value, list):
        return None
    found = 0
    for index in range(len(node.value)):
        if check.visit_child(node, schema, index) is None:
            found += 1
            if node.evaluated is not None:
                node.evaluated.items.add(index)
            elif found >= minimum and maximum is None:
                return None
    if found < minimum:
        why = "no item is valid for it" if not found else "too few items are valid for contains"
        return node.violation("contains" if not found else "minContains", why)
    if maximum is not None and found > maximum:
        return node.violation("maxContains", "too many items are valid for contains")
    return None


def check_unique_items(check: Check, node: Node, unique: Any) -> Violation | None:
    if not bool_of(unique) or not isinstance(node.value, list):
        return None
    check.budget.spend(len(node.value) // 8)
    seen = set()
    for item in node.value:
        form = canonical_form(item, check.budget)
        if form in seen:
            return node.violation("uniqueItems", "the items are not unique")
        seen.add(form)
    return None


def check_min_items(check: Check, node: Node, minimum: Any) -> Violation | None:
    fails = isinstance(node.value, list) and len(node.value) < count_of(minimum)
    return node.violation("minItems", "there are too few items") if fails else None


def check_max_items(check: Check, node: Node, maximum: Any) -> Violation | None:
    fails = isinstance(node.value, list) and len(node.value) > count_of(maximum)
    return node.violation("maxItems", "there are too many items") if fails else None


def check_unevaluated_items(check: Check, node: Node, schema: Any) -> Violation | None:
    evaluated = node.evaluated
    if not isinstance(node.value, list) or evaluated is None or evaluated.all_items:
        return None
    check.budget.spend(len(node.value) // 8)
    for index in range(len(node.value)):
        if index not in evaluated.items and (found := check.visit_child(node, schema, index)) is not None:
            if schema is False:
                return node.violation("unevaluatedItems", f"the item {index} is not allowed")
            return found
    evaluated.all_items = True
    return None
