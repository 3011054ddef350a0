"""Queries of the ledger, and their results."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

GROUPS = ("key", "session", "model", "day")
"""Properties by which spend can be summed. A day is one of UTC."""


@dataclass(frozen=True)
class UsageQuery:
    """A query: sums of the calls that ended from `start` until before `end`, for each combination of the groups.

    `start`, `end`: seconds of the Unix clock. `key`, `session`, `model`: only calls of these, unless None. `limit`,
    `offset`: part of the combinations, which are sorted.
    """

    groups: Sequence[str]
    start: float
    end: float
    key: str | None = None
    session: str | None = None
    model: str | None = None
    limit: int = 100
    offset: int = 0


class UsageSum(NamedTuple):
    """Sums of one combination. `groups`: its values in the order of the query's groups. `calls`: without those of
    tools."""

    groups: Sequence[str]
    calls: int
    prompt: int
    cached: int
    completion: int
    reasoning: int
    lost: int
    tool_calls: int
    cost: float


SUMS = (
    "count(*) FILTER (WHERE tool_calls = 0), coalesce(sum(prompt), 0), coalesce(sum(cached), 0), "
    "coalesce(sum(completion), 0), coalesce(sum(reasoning), 0), coalesce(sum(lost), 0), "
    "coalesce(sum(tool_calls), 0), coalesce(sum(cost), 0.0)"
)
"""Columns of a sum, in SQL."""


class LedgerError(Exception):
    """The ledger's database cannot be used, or a query takes too long. The message is for the client."""
