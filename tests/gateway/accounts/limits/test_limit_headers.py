"""gateway/accounts/limits/limit_headers.py: OpenAI's headers of limits."""

import math

import pytest

from gateway.accounts.limits.limit_headers import NAMES, duration_text, set_limit_headers
from gateway.accounts.limits.meter import LocalMeter


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (-1, "0s"),
        (0.0001, "1ms"),
        (0.02, "20ms"),
        (1, "1s"),
        (1.5, "1.5s"),
        (59.9999, "1m0s"),
        (360, "6m0s"),
        (8.64, "8.64s"),
        (3_600, "1h0m0s"),
        (86_461.5, "24h1m1.5s"),
    ],
)
def test_durations_have_openais_form(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_an_infinite_duration_has_a_text() -> None:
    assert duration_text(math.inf).endswith("s")


def headers_of(requests: LocalMeter | None, tokens: LocalMeter | None) -> dict[str, str]:
    headers: dict[str, str] = {}
    set_limit_headers(headers, requests, tokens, 100.0)
    return headers


def test_only_limits_that_exist_have_headers() -> None:
    requests, tokens = LocalMeter(60, per_minute=True), LocalMeter(1_000, per_minute=True)
    assert headers_of(None, None) == {}
    requests.settle(0, 6, 100.0)
    tokens.reserved += 400
    headers = headers_of(requests, tokens)
    assert set(headers) == set(NAMES)
    assert headers["x-ratelimit-limit-requests"] == "60"
    assert headers["x-ratelimit-remaining-requests"] == "54"
    assert headers["x-ratelimit-reset-requests"] == "6s"
    assert headers["x-ratelimit-remaining-tokens"] == "600", "a reservation counts as used"
    assert set(headers_of(requests, None)) == {name for name in NAMES if name.endswith("requests")}
