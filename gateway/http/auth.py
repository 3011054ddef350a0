"""Who asks: the tenant behind an API key."""

import hashlib
import hmac
from collections.abc import Collection

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from gateway.errors import RequestError

TENANT = web.RequestKey("tenant", str)
"""The request's tenant: a digest of the key, or empty where no keys are configured."""

_OPEN_ROUTES = ("/health", "/health/ready", "/metrics")


def tenant_of(key: str) -> str:
    """The tenant behind an API key."""
    return _tenant(hashlib.sha256(key.encode()).digest())


def _tenant(digest: bytes) -> str:
    return digest.hex()[:32]


def authentication(keys: Collection[str]) -> Middleware:
    """Lets requests with one of `keys` as bearer token pass; without keys, everybody, as one tenant."""
    digests = {hashlib.sha256(key.encode()).digest() for key in keys}

    @web.middleware
    async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
        request[TENANT] = ""
        if digests and request.path not in _OPEN_ROUTES:
            scheme, _, token = request.headers.get("Authorization", "").partition(" ")
            given = hashlib.sha256(token.strip().encode()).digest()
            if scheme.lower() != "bearer" or not any(hmac.compare_digest(given, digest) for digest in digests):
                what = "this API key is not known" if token else "an API key is needed: Authorization: Bearer KEY"
                raise RequestError(401, what, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
            request[TENANT] = _tenant(given)
        return await handler(request)

    return authenticate
