"""Authenticate requests: find the tenant of an API key."""

from collections.abc import Awaitable, Callable, Collection, Iterable
from contextlib import suppress

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from gateway.accounts.keys.virtual_key import digest_of
from gateway.errors import RequestError

TENANT = web.RequestKey("tenant", str)
"""Tenant of a request: a digest of the API key, the id of a virtual key, or empty if the server has no API keys."""

_FIND_TENANT: web.RequestKey[Callable[[web.Request], str]] = web.RequestKey("find_tenant")
"""Function that authenticates a request again; see `reauthenticate`."""

KEY_HEADER = "x-api-key"
"""Header with the API key in Anthropic's API."""

METRICS_ROUTE = "/metrics"
OPEN_ROUTES = ("/", "/health", "/health/ready", METRICS_ROUTE)
"""Routes that need no API key. A setting may close the metrics."""

ADMIN_ROUTES = "/v1/admin/"
"""Beginning of the routes that need an admin key."""
SHARED_ROUTES = ("/v1/usage", "/v1/status", "/v1/sessions", "/v1/programs")
"""Routes whose GET requests accept admin keys as well as API keys. The live page reads them."""
ADMIN = "admin"
"""Tenant of requests to these routes. It has no sessions and no calls."""


def tenant_of(key: str) -> str:
    """Return the tenant of a static API key."""
    return _tenant(digest_of(key))


def _tenant(digest: bytes) -> str:
    return digest.hex()[:32]


class ApiKeys:
    """Accepted API keys. Without any, and without an admin key, the server accepts all requests, as one tenant.

    Keys are found by their digests. A client cannot choose the digest of what it sends, so the time of a lookup says
    nothing about the accepted keys.
    """

    def __init__(
        self,
        keys: Iterable[str],
        admin_keys: Iterable[str] = (),
        find_virtual: Callable[[bytes], str | None] | None = None,
    ) -> None:
        """`find_virtual` returns the tenant of a virtual key by its digest, or None; it raises RequestError 401 if the
        key is not accepted now."""
        digests = [digest_of(key) for key in keys]
        self._tenants = {digest: _tenant(digest) for digest in digests}
        self._admin_digests = {digest_of(key) for key in admin_keys}
        self._find_virtual = find_virtual
        self.allows_all = not self._tenants and not self._admin_digests
        """Whether the server accepts requests without an API key."""

    def authenticate(self, key: str) -> str:
        """Return the tenant of an API key. Raises RequestError 401 if the server does not accept the API key."""
        if self.allows_all:
            return ""
        digest = digest_of(key)
        tenant = self._tenants.get(digest)
        if tenant is None and self._find_virtual is not None:
            tenant = self._find_virtual(digest)
        if tenant is not None:
            return tenant
        if digest in self._admin_digests:
            raise _key_error("This is an admin key, which runs no models. Send an API key")
        raise _unknown_key_error(key)

    def authenticate_admin(self, key: str) -> str:
        """Return the tenant of an admin key. Raises RequestError 401 if the key is none."""
        if digest_of(key) in self._admin_digests:
            return ADMIN
        raise _unknown_key_error(key, "admin key")

    def authenticate_any(self, key: str) -> str:
        """Return the tenant of an API key or an admin key. Raises RequestError 401 if the key is neither."""
        return ADMIN if key and digest_of(key) in self._admin_digests else self.authenticate(key)


def _unknown_key_error(key: str, kind: str = "API key") -> RequestError:
    problem = f"Missing {kind}. Send Authorization: Bearer KEY, or x-api-key: KEY"
    return _key_error(f"Incorrect {kind} provided" if key else problem)


def _key_error(problem: str) -> RequestError:
    return RequestError(401, problem, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def reauthenticate(request: web.Request) -> None:
    """Raise RequestError 401 if the API key of a request that began earlier is no longer accepted, such as that of a
    WebSocket after a rotation."""
    find = request.get(_FIND_TENANT)
    if find is not None:
        find(request)


def authentication(keys: ApiKeys, open_routes: Collection[str] = OPEN_ROUTES) -> Middleware:
    """Return middleware that requires one of `keys`, except on `open_routes`, which check keys on their own.

    The API key is the bearer token or, as in Anthropic's API, the header `x-api-key`. If a request has both, either may
    be valid: agents send a login of theirs beside the key.
    """

    @web.middleware
    def authenticate(request: web.Request, handler: Handler) -> Awaitable[web.StreamResponse]:
        if keys.allows_all:
            request[TENANT] = ""
        else:
            request[TENANT] = tenant(request)
            request[_FIND_TENANT] = tenant
        return handler(request)

    def tenant(request: web.Request) -> str:
        resource = request.match_info.route.resource
        route = "" if resource is None else resource.canonical
        if route in open_routes or request.method == hdrs.METH_OPTIONS:  # OPTIONS only asks for the methods of a route
            return ""
        find = keys.authenticate_admin if route.startswith(ADMIN_ROUTES) else keys.authenticate
        if route in SHARED_ROUTES and request.method in (hdrs.METH_GET, hdrs.METH_HEAD):
            find = keys.authenticate_any
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        bearer, key = token.strip() if scheme.lower() == "bearer" else "", request.headers.get(KEY_HEADER, "").strip()
        if key and bearer:
            with suppress(RequestError):
                return find(bearer)
        return find(key or bearer)

    return authenticate
