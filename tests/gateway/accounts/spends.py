"""Rows of a ledger for tests."""

from typing import Any

from gateway.accounts.ledger.spend import CallSpend


def spend(id: str, **fields: Any) -> CallSpend:
    """Return a row. Fields that are not named have plain values."""
    plain = CallSpend(id, 1_000.0, "key_1", "", "m", "e", "done", 10, 4, 5, 2, 0, 0.25, ("team",))
    return plain._replace(**fields)
