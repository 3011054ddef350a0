"""gateway/graph/forms/conditions.py: conditions on texts."""

import json
from typing import Any, Literal

import pytest

from gateway.graph.forms.conditions import UndecidedCondition, holds
from gateway.graph.forms.form import Condition

Operator = Literal["equals", "in", "matches", "less_than", "json"]


def decide(operator: Operator, operand: Any, text: str) -> bool:
    return holds(Condition([], operator, json.dumps(operand)), text)


@pytest.mark.parametrize(
    ("operator", "operand", "text", "expected"),
    [
        ("equals", " yes ", "\nyes", True),
        ("equals", "yes", "Yes", False),
        ("equals", "", " ", True),
        ("in", ["a ", "b"], " a", True),
        ("in", ["ab"], "a", False),
        ("less_than", 3, " 2.9\n", True),
        ("less_than", 3, "-inf", True),
        ("less_than", 3, "inf", False),
        ("less_than", -0.0, "0", False),
        ("json", {"a": 1, "b": [None]}, '{"b":[null],"a":1.0}', True),
        ("json", {"a": 1}, '{"a":1,"b":2}', False),
        ("json", [1, 2], "[2,1]", False),
        ("json", [True], "[1]", False),
        ("json", "x", '"x"', True),
        ("json", "1", "1", False),
    ],
)
def test_a_condition_on_a_text(operator: Operator, operand: Any, text: str, expected: bool) -> None:
    assert decide(operator, operand, text) is expected


@pytest.mark.parametrize(
    ("operator", "operand", "text", "why"),
    [
        ("less_than", 3, "three", "needs a number, but the value is 'three'"),
        ("less_than", 3, "nan", "needs a number"),
        ("less_than", 3, "", "needs a number"),
        ("less_than", 3, "x" * 1_000, r"\.\.\.'$"),
        ("json", 1, "{", "is not JSON"),
        ("json", 1, "9" * 5_000, "is not JSON"),
        ("json", [], "[" * 100_000, "nested too deeply|is not JSON"),
    ],
)
def test_a_condition_that_does_not_apply(operator: Operator, operand: Any, text: str, why: str) -> None:
    with pytest.raises(UndecidedCondition, match=why):
        decide(operator, operand, text)


def test_a_long_integer_is_compared() -> None:
    assert not decide("less_than", 3, "9" * 5_000)
