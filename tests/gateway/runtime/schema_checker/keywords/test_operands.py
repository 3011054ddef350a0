"""Tests of gateway/runtime/schema_checker/keywords/operands.py: operands have the type that a keyword needs."""

import contextlib
import math
from collections.abc import Callable
from typing import Any

import pytest

from gateway.runtime.schema_checker.keywords.operands import (
    bool_of,
    count_of,
    dict_of,
    is_number,
    list_of,
    names_of,
    number_of,
)
from gateway.runtime.schema_checker.work_budget import BudgetExceeded, NoVerdict, WorkBudget

OPERANDS: list[Any] = [None, True, False, 0, 7, -1, 2.0, -2.0, 0.5, math.inf, math.nan, 10**400, "x", [], ["a"], {}]


def names(operand: Any) -> list[str]:
    return names_of(operand, WorkBudget(100))


@pytest.mark.parametrize(
    ("read", "accepted"),
    [
        (list_of, [[], ["a"]]),
        (dict_of, [{}]),
        (bool_of, [True, False]),
        (number_of, [0, 7, -1, 2.0, -2.0, 0.5, 10**400]),
        (count_of, [0, 7, 2, 10**400]),
        (names, [[], ["a"]]),
    ],
)
def test_which_operands_are_accepted(read: Callable[[Any], Any], accepted: list[Any]) -> None:
    found = []
    for operand in OPERANDS:
        with contextlib.suppress(NoVerdict):
            found.append(read(operand))
    assert [(type(operand), operand) for operand in found] == [(type(operand), operand) for operand in accepted]


def test_names_are_strings_and_long_lists_of_them_cost_work() -> None:
    with pytest.raises(NoVerdict, match="list of names"):
        names(["a", 5])
    with pytest.raises(BudgetExceeded):
        names_of(["a"] * 1_000, WorkBudget(100))


def test_which_values_are_numbers() -> None:
    assert [value for value in OPERANDS[:9] if is_number(value)] == [0, 7, -1, 2.0, -2.0, 0.5]
    assert not is_number(True)
