"""Keywords for values of any type, and those that combine schemas."""

from collections.abc import Callable
from typing import Any

from gateway.runtime.schema_checker.canonical import canonical_form
from gateway.runtime.schema_checker.check import Check, Node
from gateway.runtime.schema_checker.keywords.operands import (
    is_number,
    list_of,
)
from gateway.runtime.schema_checker.violation import Violation
from gateway.runtime.schema_checker.work_budget import NoVerdict

_TYPES: dict[str, Callable[[Any], bool]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: is_number(value) and (isinstance(value, int) or value.is_integer()),
    "number": is_number,
    "string": lambda value: isinstance(value, str),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}


def check_type(check: Check, node: Node, types: Any) -> Violation | None:
    names = types if isinstance(types, list) else [types]
    check.budget.spend(len(names) // 8)
    if not all(isinstance(name, str) and name in _TYPES for name in names):
        raise NoVerdict("unknown type")
    if any(_TYPES[name](node.value) for name in names):
        return None
    return node.violation("type", f"the value is not of type {' or '.join(dict.fromkeys(names))}")


def check_enum(check: Check, node: Node, values: Any) -> Violation | None:
    if canonical_form(node.value, check.budget) in check.enums.forms(list_of(values), check.budget):
        return None
    return node.violation("enum", "the value is not one of the listed values")


def check_const(check: Check, node: Node, value: Any) -> Violation | None:
    if canonical_form(node.value, check.budget) == canonical_form(value, check.budget):
        return None
    return node.violation("const", "the value is not the required one")


def check_all_of(check: Check, node: Node, parts: Any) -> Violation | None:
    for part in list_of(parts):
        if (found := check.visit_part(node, part)) is not None:
            return found
    return None


def check_any_of(check: Check, node: Node, parts: Any) -> Violation | None:
    valid = False
    for part in list_of(parts):
        valid = check.is_part_valid(node, part) or valid
        if valid and node.evaluated is None:
            break
    return None if valid else node.violation("anyOf", "the value is valid for none of the alternatives")


def check_one_of(check: Check, node: Node, parts: Any) -> Violation | None:
    valid = 0
    for part in list_of(parts):
        valid += check.is_part_valid(node, part)
        if valid > 1:
            return node.violation("oneOf", "the value is valid for more than one of the alternatives")
    return None if valid else node.violation("oneOf", "the value is valid for none of the alternatives")


def check_not(check: Check, node: Node, schema: Any) -> Violation | None:
    if check.visit(schema, node.value, node.place, node.scope, None) is not None:
        return None
    return node.violation("not", "the value is valid for a schema for which it must not be valid")


def check_if(check: Check, node: Node, condition: Any) -> Violation | None:
    branch = "then" if check.is_part_valid(node, condition) else "else"
    return check.visit_part(node, node.schema[branch]) if branch in node.schema else None


def check_ref(check: Check, node: Node, reference: Any) -> Violation | None:
    if not isinstance(reference, str):
        raise NoVerdict("a reference is not a string")
    return check.visit_reference(node, lambda scope: scope.lookup(reference))


def check_recursive_ref(check: Check, node: Node, reference: Any) -> Violation | None:
    from referencing.jsonschema import lookup_recursive_ref

    if reference != "#":
        raise NoVerdict("a recursive reference is not #")
    return check.visit_reference(node, lookup_recursive_ref)
