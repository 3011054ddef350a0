"""compat/openai/forms.py: requests of the forms of a graph."""

from typing import Any

import pytest
from pydantic import ValidationError

from compat.openai.forms import ConditionRequest, MapForm, RepeatForm

CALL: dict[str, Any] = {"model": "m", "messages": []}


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({}, "exactly one of"),
        ({"equals": "a", "less_than": 1}, "this one has equals, less_than"),
        ({"equals": None}, "equals must not be null"),
        ({"in": None}, "in must not be null"),
        ({"in": []}, "at least 1 item"),
        ({"less_than": float("inf")}, "finite number"),
    ],
)
def test_a_condition_has_one_operator(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        ConditionRequest.model_validate({"value": "x", **fields})


def test_a_condition_may_compare_with_null() -> None:
    condition = ConditionRequest.model_validate({"value": "x", "json": None})
    assert condition.model_fields_set == {"value", "json_"}


def test_a_map_takes_a_reference_or_a_list() -> None:
    form = MapForm.model_validate({"map": {"over": [1, "a", None], "as": "step", "call": CALL}})
    assert (form.map.over, form.map.as_, form.map.max_items, form.output) == ([1, "a", None], "step", 1_000, None)
    assert MapForm.model_validate({"map": {"over": "<<x>>", "call": CALL}}).map.over == "<<x>>"


@pytest.mark.parametrize("more", [{"max": 0}, {"max": 101}, {"calls": []}, {"start": {"draft": "x"}}])
def test_a_repeat_is_bounded_and_starts_what_it_carries(more: dict[str, Any]) -> None:
    fields = {"calls": [CALL], "until": {"value": "x", "equals": "x"}, "max": 3}
    RepeatForm.model_validate({"repeat": fields, "outputs": ["a"]})
    with pytest.raises(ValidationError):
        RepeatForm.model_validate({"repeat": {**fields, **more}, "outputs": ["a"]})
