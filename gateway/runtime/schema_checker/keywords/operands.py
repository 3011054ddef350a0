"""Values of keywords in a schema, which a client wrote. Each function raises NoVerdict if the value has another
type."""

import math
from typing import Any

from gateway.runtime.schema_checker.work_budget import NoVerdict, WorkBudget


def is_number(value: Any) -> bool:
    """Return whether a JSON value is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def list_of(operand: Any) -> list[Any]:
    """Return the value of a keyword that must be a list; raise NoVerdict otherwise."""
    if not isinstance(operand, list):
        raise NoVerdict("a keyword needs a list")
    return operand


def dict_of(operand: Any) -> dict[str, Any]:
    """Return the value of a keyword that must be an object; raise NoVerdict otherwise."""
    if not isinstance(operand, dict):
        raise NoVerdict("a keyword needs an object")
    return operand


def bool_of(operand: Any) -> bool:
    """Return the value of a keyword that must be a boolean; raise NoVerdict otherwise."""
    if not isinstance(operand, bool):
        raise NoVerdict("a keyword needs a boolean")
    return operand


def number_of(operand: Any) -> int | float:
    """Return the value of a keyword that must be a finite number; raise NoVerdict otherwise."""
    if not is_number(operand) or (isinstance(operand, float) and not math.isfinite(operand)):
        raise NoVerdict("a keyword needs a number")
    number: int | float = operand
    return number


def count_of(operand: Any) -> int:
    """Return the value of a keyword that must be a non-negative integer; raise NoVerdict otherwise."""
    if isinstance(operand, float) and operand.is_integer():
        operand = int(operand)
    if isinstance(operand, bool) or not isinstance(operand, int) or operand < 0:
        raise NoVerdict("a keyword needs a non-negative integer")
    return operand


def names_of(operand: Any, budget: WorkBudget) -> list[str]:
    """Return the value of a keyword that must be a list of strings; raise NoVerdict otherwise."""
    budget.spend(len(list_of(operand)) // 8)
    if not all(isinstance(name, str) for name in operand):
        raise NoVerdict("a keyword needs a list of names")
    names: list[str] = operand
    return names
