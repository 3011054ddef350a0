"""Tests of gateway/runtime/schema_checker/canonical.py: equal JSON values have equal forms, in linear time."""

from typing import Any

import jsonschema
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.runtime.schema_checker.canonical import EnumCache, canonical_form
from gateway.runtime.schema_checker.work_budget import WorkBudget
from tests.gateway.runtime.schema_checker.verdicts import found

SCALARS = st.sampled_from([None, True, False, 0, 1, 1.0, 2.5, 10**17, "", "a", "1"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2),
    max_leaves=4,
)


def test_unique_items_take_linear_time() -> None:
    values = [*range(50_000), *[f"{index}" for index in range(50_000)]]
    assert found({"uniqueItems": True}, values) is None
    assert found({"uniqueItems": True}, [*values, 49_999.0]) == "$: uniqueItems: the items are not unique"


@given(VALUES, VALUES)
@example([1, {"a": 2.0}], [1.0, {"a": 2}])
@example(True, 1)
@example({"a": 1, "b": 2}, {"b": 2, "a": 1})
def test_forms_are_equal_if_and_only_if_the_values_are(left: Any, right: Any) -> None:
    budget = WorkBudget(100_000)
    is_same = jsonschema._utils.equal(left, right)
    assert (canonical_form(left, budget) == canonical_form(right, budget)) == is_same
    assert hash(canonical_form(left, budget)) is not None


def test_forms_of_an_enum_are_computed_once() -> None:
    enums, budget, values = EnumCache(), WorkBudget(1_000), [[index] for index in range(100)]
    first = enums.forms(values, budget)
    spent = 1_000 - budget.left
    assert enums.forms(values, budget) is first
    assert (spent > 100, 1_000 - budget.left) == (True, spent)
