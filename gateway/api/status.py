"""GET /v1/status: engines, counters and waiting calls of the whole server, without data of single API keys."""

import time
from collections import Counter
from typing import Literal

from aiohttp import web

from compat.openai import EngineObject, StatusObject
from gateway.api.services import SERVICES, Services
from gateway.http.json_body import json_response
from gateway.http.openapi import operation
from gateway.telemetry.metrics import read_totals

routes = web.RouteTableDef()

_CACHE_SECONDS = 0.5
"""Time for which an answer is reused, in seconds: counting thousands of calls takes milliseconds."""
_LONGEST_PROBLEM = 300
"""Maximum length of an engine's problem, in characters."""
_CACHE: web.AppKey["StatusCache"] = web.AppKey("status_cache")


class StatusCache:
    """Owner of the latest status."""

    def __init__(self) -> None:
        self._status: StatusObject | None = None
        self._expires = 0.0

    def read(self, services: Services) -> StatusObject:
        """Return a status that is at most `_CACHE_SECONDS` old."""
        now = time.monotonic()
        if self._status is None or now >= self._expires:
            self._status, self._expires = describe_status(services), now + _CACHE_SECONDS
        return self._status


def add_status_cache(app: web.Application) -> None:
    """Give the application its cache."""
    app[_CACHE] = StatusCache()


@routes.get("/v1/status")
@operation(StatusObject)
async def status(request: web.Request) -> web.Response:
    """Return the state of the server: its engines, its counters, and how many unfinished calls wait for each cause.

    The figures are sums over all API keys. They contain no text, no name and no session.
    """
    return json_response(request.app[_CACHE].read(request.app[SERVICES]))


def describe_status(services: Services) -> StatusObject:
    """Return the state of the server. The time that this takes grows with the number of unfinished calls alone."""
    totals = read_totals()
    missed = Counter(totals.missed)
    missed["never_seen"] += missed.pop("other_key", 0)  # as in the graph of a session
    return {
        "object": "status",
        "time": time.time(),
        "state": _state_of(services),
        "engines": _describe_engines(services),
        "counters": {
            "requests": totals.requests,
            "calls": dict(totals.calls),
            "tokens": dict(totals.tokens),
            "missed_tokens": {reason: tokens for reason, tokens in missed.items() if tokens},
        },
        "unfinished": services.scheduler.unfinished_calls,
        "waiting": dict(services.scheduler.count_waits()),
    }


def _state_of(services: Services) -> Literal["ready", "starting", "stopping"]:
    if services.scheduler.is_stopping:
        return "stopping"
    return "ready" if services.is_ready() else "starting"


def _describe_engines(services: Services) -> list[EngineObject]:
    return [
        {
            "name": engine.name,
            "models": list(models),
            "ready": engine.is_ready,
            "load": engine.load,
            "kv_blocks": engine.kv_blocks,
            "kv_blocks_in_use": engine.kv_blocks_in_use,
            "restarts": engine.restarts,
            "step_seconds": engine.step_seconds,
            "problem": None if engine.problem is None else engine.problem[:_LONGEST_PROBLEM],
        }
        for engine, models in services.describe_engines()
    ]
