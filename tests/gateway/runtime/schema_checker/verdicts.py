"""Verdicts of the checker, for tests."""

from typing import Any

import pytest

from gateway.runtime.schema_checker.checker import SchemaChecker
from gateway.runtime.schema_checker.work_budget import NoVerdict, WorkBudget

DRAFT7 = {"$schema": "http://json-schema.org/draft-07/schema#"}


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
