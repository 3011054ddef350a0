"""Tests of gateway/runtime/schema_checker/work_budget.py."""

import pytest

from gateway.runtime.schema_checker.work_budget import BudgetExceeded, WorkBudget


def test_the_last_unit_may_be_spent() -> None:
    budget = WorkBudget(3)
    budget.spend(2)
    budget.spend(1)
    budget.spend(0)
    with pytest.raises(BudgetExceeded):
        budget.spend(1)
    with pytest.raises(BudgetExceeded):
        budget.spend(0)
