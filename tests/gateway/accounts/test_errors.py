"""gateway/accounts/errors.py: each error has a code with a status."""

import pytest

from gateway.accounts.errors import KeyDisabled, KeyEnded, KeyStoreError, LimitReached, QuotaReached
from gateway.errors import RequestError
from gateway.graph.errors import GraphError


@pytest.mark.parametrize(
    ("error", "status", "headers"),
    [
        (LimitReached("full"), 429, {"Retry-After": "1"}),
        (LimitReached("full", retry_after=0.1), 429, {"Retry-After": "1"}),
        (LimitReached("full", retry_after=2.1), 429, {"Retry-After": "3"}),
        (QuotaReached("used up"), 429, {"x-should-retry": "false"}),
        (QuotaReached("used up", retry_after=60.0), 429, {"x-should-retry": "false", "Retry-After": "60"}),
        (KeyStoreError("down"), 503, {"Retry-After": "1"}),
        (KeyEnded("deleted"), 401, {}),
        (KeyDisabled("disabled"), 401, {}),
    ],
)
def test_each_error_has_its_answer(error: GraphError, status: int, headers: dict[str, str]) -> None:
    answer = RequestError.of_graph(error)
    assert (answer.status, answer.code, answer.headers) == (status, error.code, headers)
