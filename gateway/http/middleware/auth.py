"""Who asks: the tenant behind an API key."""

import hashlib
import hmac
from collections.abc import Awaitable, Collection, Iterable

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from gateway.errors import RequestError

TENANT = web.RequestKey("tenant", str)
"""The request's tenant: a digest of the key, or empty where no keys are configured."""

OPEN_ROUTES = ("/health", "/health/ready", "/metrics")
"""Routes that need no key."""


def tenant_of(key: str) -> str:
    """The tenant behind an API key."""
    return _tenant(hashlib.sha256(key.encode()).digest())


def _tenant(digest: bytes) -> str:
    return digest.hex()[:32]


class Keys:
    """The API keys that may ask; without any, everybody may, as one tenant."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = {hashlib.sha256(key.encode()).digest() for key in keys}

    @property
    def everybody(self) -> bool:
        """Whether no key is needed."""
        return not self._digests

    def tenant(self, key: str) -> str:
        """Whose the key is. Raises RequestError 401."""
        if self.everybody:
            return ""
        given = hashlib.sha256(key.encode(errors="surrogateescape")).digest()  # bytes of a header may be anything
        if not any(hmac.compare_digest(given, digest) for digest in self._digests):
            what = "this API key is not known" if key else "an API key is needed: Authorization: Bearer KEY"
            raise RequestError(401, what, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        return _tenant(given)


def authentication(keys: Keys, open_routes: Collection[str] = OPEN_ROUTES) -> Middleware:
    """Lets requests with one of `keys` as bearer token pass. `open_routes` find out for themselves who asks."""

    @web.middleware
    def authenticate(request: web.Request, handler: Handler) -> Awaitable[web.StreamResponse]:
        request[TENANT] = "" if keys.everybody else tenant(request)
        return handler(request)

    def tenant(request: web.Request) -> str:
        resource = request.match_info.route.resource
        is_open = resource is not None and resource.canonical in open_routes
        if is_open or request.method == hdrs.METH_OPTIONS:  # which only asks what a route can do
            return ""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        return keys.tenant(token.strip() if scheme.lower() == "bearer" else "")

    return authenticate
