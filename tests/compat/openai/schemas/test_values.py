"""Tests of compat/openai/schemas/values.py: numbers are exact."""

import jsonschema
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from compat.openai.response_formats import enforced_schema
from compat.openai.schemas.policy import Enforcement
from tests.compat.openai.schemas.answers import BEST, LENIENT, fits

SMALL, BIG = 2**53, 10**18


@given(st.integers(-BIG * 20, BIG * 20), st.integers(0, 5000), st.sampled_from(["", "exclusive"]))
@example(2**53 + 1, 2, "")
@example(2**53 + 1, 2, "exclusive")
@example(-(2**63), 2**64, "")
@settings(max_examples=150)
def test_integers_are_exactly_within_their_bounds(low: int, width: int, kind: str) -> None:
    lower, upper = (f"{kind}Minimum", f"{kind}Maximum") if kind else ("minimum", "maximum")
    schema = {"type": "integer", lower: low, upper: low + width}
    try:
        enforced = enforced_schema(schema)
    except ValueError:
        assert abs(low) + width > SMALL or width < 2, (
            "only bounds that no float represents, or that leave no value, are refused"
        )
        return
    validator = jsonschema.Draft202012Validator(schema)
    for value in {low + offset for offset in (-2, -1, 0, 1, width - 1, width, width + 1, width + 2)}:
        if fits(enforced, value):
            assert validator.is_valid(value)
        else:
            assert abs(value) > SMALL or not validator.is_valid(value)


@pytest.mark.parametrize("value", [2**53 + 1, -(2**53) - 1, 2**63, -(2**63), 12345678901234567890, 10**25])
def test_values_that_no_float_represents_are_refused(value: int) -> None:
    for schema in ({"const": value}, {"enum": [1, value]}, {"const": {"deep": [value]}}):
        for enforcement in (Enforcement.STRICT, BEST):
            with pytest.raises(ValueError, match="represented exactly"):
                enforced_schema(schema, enforcement)
        assert enforced_schema(schema, LENIENT) is not None
