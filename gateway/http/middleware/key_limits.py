"""Apply the limits of API keys to the requests that run models."""

from collections.abc import Awaitable, Callable
from typing import TypeVar, TypeVarTuple

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from gateway.accounts.accounts import Accounts
from gateway.accounts.errors import LimitReached
from gateway.accounts.limits.key_limits import KeyLimits
from gateway.http.middleware.auth import TENANT
from gateway.http.rate_headers import LIMITS
from gateway.telemetry.metrics import count_limited

_Arguments = TypeVarTuple("_Arguments")
_Result = TypeVar("_Result")

MODEL_ROUTES = frozenset(
    {
        *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/responses/compact", "/v1/messages"),
        *("/v1/graphs", "/v1/embeddings", "/rerank", "/v1/rerank", "/v2/rerank", "/score", "/v1/score"),
        *("/v1/audio/speech", "/v1/audio/transcriptions", "/v1/audio/translations"),
        *("/v1/images/generations", "/v1/images/edits"),
    }
)
"""Paths of routes whose POST requests run models. Requests to other routes are not limited. None has a parameter, so
a request that aiohttp routes there has this path; aiohttp has computed it already."""


def key_limits(accounts: Accounts) -> Middleware:
    """Return middleware that admits requests of keys with limits. It runs after authentication, in the gateway that
    answers the request."""

    @web.middleware
    def limit(request: web.Request, handler: Handler) -> Awaitable[web.StreamResponse]:
        limits = accounts.limits_of(request[TENANT])
        if limits is None or request.rel_url.path_safe not in MODEL_ROUTES or request.method != hdrs.METH_POST:
            return handler(request)
        request[LIMITS] = limits
        return run_limited(limits, handler, request)

    return limit


async def run_limited(
    limits: KeyLimits, work: Callable[[*_Arguments], Awaitable[_Result]], *arguments: *_Arguments
) -> _Result:
    """Return the result of `work(*arguments)` once the limits admit the request. Raises LimitReached."""
    try:
        place = limits.take_place() if limits.can_enter() else await limits.enter()
        try:
            return await work(*arguments)
        finally:
            limits.leave(place)
    except LimitReached as error:
        count_limited(limits.id, error.code)
        raise
