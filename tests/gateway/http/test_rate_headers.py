"""gateway/http/rate_headers.py: answers have the headers of limits."""

from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from gateway.accounts.keys.virtual_key import KeyRecord
from gateway.accounts.limits.key_limits import KeyLimits, WaitingRule
from gateway.http.rate_headers import LIMITS, add_limit_headers


def test_a_request_of_a_key_with_limits_has_their_headers() -> None:
    request, headers = make_mocked_request("POST", "/"), CIMultiDict({"a": "b"})
    add_limit_headers(request, headers)
    request[LIMITS] = None
    add_limit_headers(request, headers)
    assert dict(headers) == {"a": "b"}
    limits = KeyLimits("key_1", WaitingRule())
    limits.apply(KeyRecord(id="key_1", digest="", created=0, rpm=60), None)
    limits.take_place()
    request[LIMITS] = limits
    add_limit_headers(request, headers)
    assert headers["X-RateLimit-Remaining-Requests"] == "59"
    assert "x-ratelimit-limit-tokens" not in headers
