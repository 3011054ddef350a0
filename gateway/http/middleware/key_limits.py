"""Apply the limits of API keys to the requests that run models."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from gateway.accounts.accounts import Accounts
from gateway.accounts.errors import LimitReached
from gateway.accounts.limits.key_limits import KeyLimits
from gateway.http.middleware.auth import TENANT
from gateway.telemetry.metrics import count_limited

_Result = TypeVar("_Result")
_LIMITS = web.RequestKey("key_limits", KeyLimits)

MODEL_ROUTES = frozenset(
    {
        *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/responses/compact", "/v1/messages"),
        *("/v1/graphs", "/v1/embeddings", "/rerank", "/v1/rerank", "/v2/rerank", "/score", "/v1/score"),
        *("/v1/audio/speech", "/v1/audio/transcriptions", "/v1/audio/translations"),
        *("/v1/images/generations", "/v1/images/edits"),
    }
)
"""Routes whose POST requests run models. Requests to other routes are not limited."""


def key_limits(accounts: Accounts) -> Middleware:
    """Return middleware that admits requests of keys with limits. It runs after authentication, in the gateway that
    answers the request."""

    @web.middleware
    def limit(request: web.Request, handler: Handler) -> Awaitable[web.StreamResponse]:
        limits = accounts.limits_of(request[TENANT])
        if limits is None or request.method != hdrs.METH_POST or not _runs_model(request):
            return handler(request)
        request[_LIMITS] = limits
        return run_limited(limits, partial(handler, request))

    return limit


def _runs_model(request: web.Request) -> bool:
    resource = request.match_info.route.resource
    return resource is not None and resource.canonical in MODEL_ROUTES


async def run_limited(limits: KeyLimits, work: Callable[[], Awaitable[_Result]]) -> _Result:
    """Return the result of the work for a request once the limits admit it. Raises LimitReached."""
    try:
        place = limits.take_place() if limits.can_enter() else await limits.enter()
        try:
            return await work()
        finally:
            limits.leave(place)
    except LimitReached as error:
        count_limited(limits.id, error.code)
        raise


async def add_limit_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Add the headers that describe the limits of the request's key. For `on_response_prepare`."""
    limits = request.get(_LIMITS)
    if limits is not None and (headers := limits.headers()):
        found = response.headers
        for name, value in headers.items():  # faster than `update`
            found[name] = value
