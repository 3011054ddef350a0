"""Canonical forms of JSON values, for comparisons in constant time."""

import json
from typing import Any

from gateway.runtime.schema_checker.work_budget import NoVerdict, WorkBudget


def canonical_form(value: Any, budget: WorkBudget) -> Any:
    """Return a hashable form of a value. Equal JSON values have equal forms, and only these. Raises NoVerdict if a part
    of the value is unknown.

    Containers become bytes: hashes of tuples could be made to collide, those of bytes cannot.
    """
    if value is True or value is False:
        return b"true" if value else b"false"
    if isinstance(value, dict | list):
        try:
            return json.dumps(_normal(value, budget), sort_keys=True).encode()
        except TypeError:
            raise NoVerdict("a part of the value is not known yet") from None
    return value


def _normal(value: Any, budget: WorkBudget) -> Any:
    """Return the value with whole numbers as integers, so that equal numbers are written alike."""
    if isinstance(value, dict):
        budget.spend(1 + len(value) // 4)
        return {name: _normal(item, budget) for name, item in value.items()}
    if isinstance(value, list):
        budget.spend(1 + len(value) // 4)
        return [_normal(item, budget) for item in value]
    if isinstance(value, str):
        budget.spend(len(value) // 1_000)
    return int(value) if isinstance(value, float) and value.is_integer() else value


class EnumCache:
    """Owner of the canonical forms of each `enum` in one schema."""

    def __init__(self) -> None:
        self._forms: dict[int, frozenset[Any]] = {}
        """Forms by the identity of the list. The schema keeps the list."""

    def forms(self, values: list[Any], budget: WorkBudget) -> frozenset[Any]:
        """Return the canonical forms of the values of an `enum`."""
        forms = self._forms.get(id(values))
        if forms is None:
            budget.spend(len(values) // 8)
            forms = self._forms[id(values)] = frozenset([canonical_form(value, budget) for value in values])
        return forms
