"""Add the headers `x-ratelimit-*` to answers."""

from aiohttp import web
from multidict import MutableMultiMapping

from gateway.accounts.limits.key_limits import KeyLimits

LIMITS: web.RequestKey[KeyLimits | None] = web.RequestKey("key_limits")
"""Limits that a request counts for; None if its key has none."""


def add_limit_headers(request: web.BaseRequest, headers: MutableMultiMapping[str]) -> None:
    """Add the headers that describe the limits of the request's key, if it has some, to those of an answer."""
    if (limits := request.get(LIMITS)) is not None:
        limits.set_headers(headers)
