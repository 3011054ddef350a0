"""Authenticate requests: find the tenant of an API key."""

import hashlib
import hmac
from collections.abc import Awaitable, Collection, Iterable
from contextlib import suppress

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from gateway.errors import RequestError

TENANT = web.RequestKey("tenant", str)
"""Tenant of a request: a digest of the API key, or empty if the server has no API keys."""

KEY_HEADER = "x-api-key"
"""Header with the API key in Anthropic's API."""

METRICS_ROUTE = "/metrics"
OPEN_ROUTES = ("/", "/health", "/health/ready", METRICS_ROUTE)
"""Routes that need no API key. A setting may close the metrics."""


def tenant_of(key: str) -> str:
    """Return the tenant of an API key."""
    return _tenant(hashlib.sha256(key.encode()).digest())


def _tenant(digest: bytes) -> str:
    return digest.hex()[:32]


class ApiKeys:
    """Accepted API keys. Without any, the server accepts all requests, as one tenant."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = {hashlib.sha256(key.encode()).digest() for key in keys}

    @property
    def allows_all(self) -> bool:
        """Return whether the server accepts requests without an API key."""
        return not self._digests

    def authenticate(self, key: str) -> str:
        """Return the tenant of an API key. Raises RequestError 401 if the server does not know the API key."""
        if self.allows_all:
            return ""
        presented = hashlib.sha256(key.encode(errors="surrogateescape")).digest()  # a header may have any bytes
        if not any(hmac.compare_digest(presented, digest) for digest in self._digests):
            problem = (
                "Incorrect API key provided"
                if key
                else "Missing API key. Send Authorization: Bearer KEY, or x-api-key: KEY"
            )
            raise RequestError(401, problem, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        return _tenant(presented)


def authentication(keys: ApiKeys, open_routes: Collection[str] = OPEN_ROUTES) -> Middleware:
    """Return middleware that requires one of `keys`, except on `open_routes`, which check keys on their own.

    The API key is the bearer token or, as in Anthropic's API, the header `x-api-key`. If a request has both, either may
    be valid: agents send a login of theirs beside the key.
    """

    @web.middleware
    def authenticate(request: web.Request, handler: Handler) -> Awaitable[web.StreamResponse]:
        request[TENANT] = "" if keys.allows_all else tenant(request)
        return handler(request)

    def tenant(request: web.Request) -> str:
        resource = request.match_info.route.resource
        is_open = resource is not None and resource.canonical in open_routes
        if is_open or request.method == hdrs.METH_OPTIONS:  # OPTIONS only asks for the methods of a route
            return ""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        bearer, key = token.strip() if scheme.lower() == "bearer" else "", request.headers.get(KEY_HEADER, "").strip()
        if key and bearer:
            with suppress(RequestError):
                return keys.authenticate(bearer)
        return keys.authenticate(key or bearer)

    return authenticate
