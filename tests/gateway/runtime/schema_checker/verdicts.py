"""Verdicts of the checker, for tests."""

import json
from typing import Any

import jsonschema
import pytest

from gateway.runtime.schema_checker.checker import SchemaChecker
from gateway.runtime.schema_checker.work_budget import NoVerdict, WorkBudget

DRAFT4, DRAFT6, DRAFT7 = ({"$schema": f"http://json-schema.org/draft-0{number}/schema#"} for number in (4, 6, 7))
DRAFT2019 = {"$schema": "https://json-schema.org/draft/2019-09/schema"}


def found(schema: Any, value: Any, units: int = 50_000) -> str | None:
    """Return the violation, as a sentence. Raises NoVerdict."""
    violation = SchemaChecker(schema).check(value, WorkBudget(units))
    return None if violation is None else str(violation)


def no_verdict(schema: Any, value: Any) -> str:
    with pytest.raises(NoVerdict) as raised:
        found(schema, value)
    return str(raised.value)


def nested(levels: int, value: Any = 1) -> Any:
    for _ in range(levels):
        value = [value]
    return value


def assert_verdicts(schema: Any, valid: Any, invalid: Any, violation: str, *, agrees: bool = True) -> None:
    """Check the verdicts on a valid and an invalid value, and that jsonschema agrees.

    `violation`: beginning of the violation. `agrees` False: jsonschema is known to be wrong.
    """
    before = json.dumps(schema)
    assert found(schema, valid) is None
    assert str(found(schema, invalid)).startswith(violation)
    assert json.dumps(schema) == before
    validator = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    if agrees:
        assert (validator(schema).is_valid(valid), validator(schema).is_valid(invalid)) == (True, False)
