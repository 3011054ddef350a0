"""Keywords for numbers."""

from fractions import Fraction
from typing import Any

from gateway.runtime.schema_checker.check import Check, Node
from gateway.runtime.schema_checker.keywords.operands import (
    bool_of,
    is_number,
    number_of,
)
from gateway.runtime.schema_checker.violation import Violation
from gateway.runtime.schema_checker.work_budget import NoVerdict

_MAX_BITS = 4_096
"""Maximum size of numbers that are divided, in bits."""
_EXACT_DIGITS = 15
"""Number of decimal digits up to which a float is read exactly as it was written."""


def check_minimum(check: Check, node: Node, limit: Any) -> Violation | None:
    fails = number_of(limit) > node.value if is_number(node.value) else False
    return node.violation("minimum", "the number is too small") if fails else None


def check_maximum(check: Check, node: Node, limit: Any) -> Violation | None:
    fails = number_of(limit) < node.value if is_number(node.value) else False
    return node.violation("maximum", "the number is too large") if fails else None


def check_exclusive_minimum(check: Check, node: Node, limit: Any) -> Violation | None:
    fails = number_of(limit) >= node.value if is_number(node.value) else False
    return node.violation("exclusiveMinimum", "the number is too small") if fails else None


def check_exclusive_maximum(check: Check, node: Node, limit: Any) -> Violation | None:
    fails = number_of(limit) <= node.value if is_number(node.value) else False
    return node.violation("exclusiveMaximum", "the number is too large") if fails else None


def check_minimum_of_draft4(check: Check, node: Node, limit: Any) -> Violation | None:
    exclusive = bool_of(node.schema.get("exclusiveMinimum", False))
    return (check_exclusive_minimum if exclusive else check_minimum)(check, node, limit)


def check_maximum_of_draft4(check: Check, node: Node, limit: Any) -> Violation | None:
    exclusive = bool_of(node.schema.get("exclusiveMaximum", False))
    return (check_exclusive_maximum if exclusive else check_maximum)(check, node, limit)


def check_multiple_of(check: Check, node: Node, divisor: Any) -> Violation | None:
    if not is_number(node.value):
        return None
    if number_of(divisor) <= 0:
        raise NoVerdict("multipleOf must be positive")
    check.budget.spend(5)
    if _fraction(node.value) % _fraction(divisor) == 0:
        return None
    return node.violation("multipleOf", "the number is not a multiple")


def _fraction(number: int | float) -> Fraction:
    """Return a number as it was written in decimal. Raises NoVerdict if that is not known, or if it is huge."""
    if isinstance(number, int):
        if number.bit_length() > _MAX_BITS:
            raise NoVerdict("a number is too long")
        return Fraction(number)
    text = repr(number)
    if sum(map(str.isdigit, text.partition("e")[0].replace(".", "").strip("-0"))) > _EXACT_DIGITS:
        raise NoVerdict("a number has more digits than a float keeps")
    return Fraction(text)
