"""Health checks and metrics."""

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from compat.openai import Health
from gateway.api.services import SERVICES
from gateway.http.json_body import json_response
from gateway.http.openapi import operation
from gateway.telemetry.metrics import render_metrics

routes = web.RouteTableDef()


@routes.get("/")
@operation(Health)
async def root(request: web.Request) -> web.Response:
    """Return 200: some clients send HEAD to the base URL before they send requests."""
    return json_response({"status": "ok"})


@routes.get("/health")
@operation(Health)
async def health(request: web.Request) -> web.Response:
    """Return 200 while the gateway process responds."""
    return json_response({"status": "ok"})


@routes.get("/health/ready")
@operation(Health, errors=(503,), error=Health)
async def ready(request: web.Request) -> web.Response:
    """Return 200 once every model has an engine that accepts work, otherwise 503.

    It is 503 while the server starts, restarts an engine, or stops.
    """
    services = request.app[SERVICES]
    if services.scheduler.is_stopping:
        return json_response({"status": "stopping"}, status=503)
    if services.is_ready():
        return json_response({"status": "ready"})
    return json_response({"status": "starting"}, status=503)


@routes.get("/metrics")
@operation(others={"text/plain": None})
async def metrics(request: web.Request) -> web.Response:
    """Return the metrics in Prometheus' text format."""
    content = render_metrics(request.app[SERVICES].scheduler.count_calls())
    return web.Response(body=content, headers={"Content-Type": CONTENT_TYPE_LATEST})
