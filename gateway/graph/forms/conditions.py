"""Evaluate the conditions of branches and repeats."""

import json
import math
from typing import Any

from gateway.graph.forms.form import Condition


class UndecidedCondition(ValueError):
    """The condition does not apply to the text. The message says why."""


def holds(condition: Condition, text: str) -> bool:
    """Return whether a condition other than `matches` holds for a text. `FormSteps.decide` evaluates `matches`, whose
    search may take a second.

    Raises UndecidedCondition if the text is not a number or not JSON, as the condition requires.
    """
    operand: Any = json.loads(condition.operand)
    match condition.operator:
        case "equals":
            return text.strip() == str(operand).strip()
        case "in":
            return text.strip() in {item.strip() for item in operand}
        case "less_than":
            return _number(text) < float(operand)
        case "json":
            try:
                return _is_equal(_parsed(text), operand)
            except RecursionError:
                raise UndecidedCondition("the value is nested too deeply") from None
        case "matches":
            raise ValueError("a search is not decided here")


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise UndecidedCondition(f"less_than needs a number, but the value is {_short(text)}")
    return number


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise UndecidedCondition(f"the value is not JSON: {_short(text)}") from None


def _is_equal(one: Any, other: Any) -> bool:
    """Return whether two JSON values are equal. True is not 1, as in JSON."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_equal(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_equal, one, other))
    return bool(one == other)


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
