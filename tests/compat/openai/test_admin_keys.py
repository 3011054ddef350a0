"""compat/openai/admin_keys.py: requests about virtual keys."""

import pytest
from pydantic import ValidationError

from compat.openai.admin_keys import CreateKeyRequest, RotateKeyRequest, UpdateKeyRequest
from gateway.accounts.limits.periods import PERIOD_PATTERN


def test_a_limit_that_is_left_out_does_not_apply() -> None:
    body = CreateKeyRequest.model_validate({})
    assert (body.models, body.rpm, body.budget_cost, body.weight, body.tags) == (None, None, None, 1.0, [])


def test_a_period_needs_a_budget() -> None:
    with pytest.raises(ValidationError, match="budget_period needs"):
        CreateKeyRequest.model_validate({"budget_period": "1d"})
    for budget in ("budget_cost", "budget_tokens"):
        CreateKeyRequest.model_validate({"budget_period": "1d", budget: 0})
    UpdateKeyRequest.model_validate({"budget_period": "1d"})


def test_an_update_tells_null_from_left_out() -> None:
    body = UpdateKeyRequest.model_validate({"rpm": None, "name": "a"})
    assert body.model_fields_set == {"rpm", "name"}


def test_the_schema_has_the_pattern_of_periods() -> None:
    schema = CreateKeyRequest.model_json_schema()
    assert {"pattern": PERIOD_PATTERN, "type": "string"} in schema["properties"]["budget_period"]["anyOf"]


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "x" * 201},
        {"name": "a\nb"},
        {"models": []},
        {"models": [""]},
        {"models": ["x"] * 101},
        {"weight": 0},
        {"weight": float("nan")},
        {"weight": float("inf")},
        {"weight": "1"},
        {"rpm": 0},
        {"rpm": 1.5},
        {"rpm": True},
        {"rpm": 10**10},
        {"budget_cost": -0.01},
        {"budget_cost": float("nan")},
        {"budget_tokens": 1.5},
        {"budget_tokens": 1, "budget_period": "1w"},
        {"expires_at": -1},
        {"expires_at": 10**12},
        {"tags": ["a"] * 17},
        {"tags": ["a\rb"]},
        {"id": "key_1"},
    ],
)
def test_other_values_are_refused(fields: dict[str, object]) -> None:
    for kind in (CreateKeyRequest, UpdateKeyRequest):
        with pytest.raises(ValidationError):
            kind.model_validate(fields)


@pytest.mark.parametrize("grace", [-1, float("nan"), float("inf"), "1", 10**9])
def test_a_grace_has_bounds(grace: object) -> None:
    with pytest.raises(ValidationError):
        RotateKeyRequest.model_validate({"grace_seconds": grace})
