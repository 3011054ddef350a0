"""Operands of keywords: their values in the schema, which a client wrote. Each function raises NoVerdict for others."""

import math
from typing import Any

from gateway.runtime.schema_checker.work_budget import NoVerdict, WorkBudget


def is_number(value: Any) -> bool:
    """Return whether a JSON value is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def list_of(operand: Any) -> list[Any]:
    """Return an operand that must be a list."""
    if not isinstance(operand, list):
        raise NoVerdict("a keyword needs a list")
    return operand


def dict_of(operand: Any) -> dict[str, Any]:
    """Return an operand that must be an object."""
    if not isinstance(operand, dict):
        raise NoVerdict("a keyword needs an object")
    return operand


def bool_of(operand: Any) -> bool:
    """Return an operand that must be a boolean."""
    if not isinstance(operand, bool):
        raise NoVerdict("a keyword needs a boolean")
    return operand


def number_of(operand: Any) -> int | float:
    """Return an operand that must be a finite number."""
    if not is_number(operand) or (isinstance(operand, float) and not math.isfinite(operand)):
        raise NoVerdict("a keyword needs a number")
    number: int | float = operand
    return number


def count_of(operand: Any) -> int:
    """Return an operand that must be a non-negative integer."""
    if isinstance(operand, float) and operand.is_integer():
        operand = int(operand)
    if isinstance(operand, bool) or not isinstance(operand, int) or operand < 0:
        raise NoVerdict("a keyword needs a non-negative integer")
    return operand


def names_of(operand: Any, budget: WorkBudget) -> list[str]:
    """Return an operand that must be a list of strings."""
    budget.spend(len(list_of(operand)) // 8)
    if not all(isinstance(name, str) for name in operand):
        raise NoVerdict("a keyword needs a list of names")
    names: list[str] = operand
    return names
