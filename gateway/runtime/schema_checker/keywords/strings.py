"""Keywords for strings."""

from typing import Any

from gateway.runtime.schema_checker.check import Check, Node
from gateway.runtime.schema_checker.keywords.operands import (
    count_of,
)
from gateway.runtime.schema_checker.violation import Violation


def check_min_length(check: Check, node: Node, minimum: Any) -> Violation | None:
    fails = isinstance(node.value, str) and len(node.value) < count_of(minimum)
    return node.violation("minLength", "the string is too short") if fails else None


def check_max_length(check: Check, node: Node, maximum: Any) -> Violation | None:
    fails = isinstance(node.value, str) and len(node.value) > count_of(maximum)
    return node.violation("maxLength", "the string is too long") if fails else None


def check_pattern(check: Check, node: Node, expression: Any) -> Violation | None:
    if not isinstance(node.value, str) or check.patterns.matches(expression, node.value, check.budget):
        return None
    return node.violation("pattern", "the string does not match")
