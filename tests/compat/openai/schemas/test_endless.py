"""Tests of compat/openai/schemas/endless.py: schemas without a finite valid value."""

from typing import Any

import pytest

from compat.openai.response_formats import enforced_schema
from compat.openai.schemas.policy import Enforcement
from tests.compat.openai.schemas.answers import BEST, LENIENT, X, fits

ENDLESS = {"n": {"$ref": "#/$defs/n"}}
NEEDS = {"n": {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}, "required": ["n"]}}


@pytest.mark.parametrize("enforcement", [Enforcement.STRICT, BEST])
@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/n", "$defs": ENDLESS},
        {"$ref": "#"},
        {"$ref": "#/$defs/n", "$defs": NEEDS},
        {"type": "array", "minItems": 1, "items": {"$ref": "#"}},
        {"allOf": [{"$ref": "#/$defs/n"}, X], "$defs": NEEDS},
        {"type": "integer", "minimum": 5, "maximum": 1},
        {"type": "string", "pattern": "^[^\\s\\S]$"},
        {"enum": []},
        False,
    ],
)
def test_a_schema_without_a_valid_value_is_refused(schema: Any, enforcement: Enforcement) -> None:
    with pytest.raises(ValueError, match=r"unsatisfiable|Unsatisfiable|no value"):
        enforced_schema(schema, enforcement)
    assert enforced_schema(schema, LENIENT), "a tool that is not strict is never refused"


def test_a_property_without_a_finite_value_is_dropped() -> None:
    schema = {"type": "object", "properties": {"a": {"$ref": "#/$defs/n"}, "b": {"type": "null"}}, "$defs": NEEDS}
    assert fits(enforced_schema(schema), {"b": None})
    assert not fits(enforced_schema(schema), {"a": {}})
