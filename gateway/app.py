"""The composition root: build the services and the HTTP application from the settings."""

import resource
import ssl
from collections.abc import Callable

from aiohttp import web
from aiohttp.typedefs import Middleware

from gateway.api import health, live_page, status
from gateway.api.anthropic import count_tokens, messages
from gateway.api.openai import chat, completions, embeddings, models, relayed
from gateway.api.openai import tokenize as tokens
from gateway.api.parrot import routes as parrot
from gateway.api.responses import conversation_routes, derived_routes, socket
from gateway.api.responses import routes as responses
from gateway.api.responses.background import BACKGROUND, Background
from gateway.api.semantic import events, graphs, sessions, variables
from gateway.api.services import SERVICES, Services
from gateway.cluster import Forwarding, Membership
from gateway.cluster.session_routing import is_session_list, requested_session
from gateway.config.settings import ServeSettings
from gateway.engines.pool import EnginePool
from gateway.graph.call import Call
from gateway.graph.events import FactSink
from gateway.graph.limits import SessionLimits, SharedLimit
from gateway.graph.session import Session
from gateway.graph.session_store import SessionStore
from gateway.http import openapi
from gateway.http.json_body import BODY_BYTES_LIMIT, LARGE_BODY_GATE, SCHEMA_CHECK_GATE
from gateway.http.middleware.admission import ADMISSION, AdmissionGate, admission_gate
from gateway.http.middleware.auth import OPEN_ROUTES, ApiKeys, authentication, tenant_of
from gateway.http.middleware.compression import compression
from gateway.http.middleware.cors import cors_headers
from gateway.http.middleware.errors import errors
from gateway.http.websocket import MAX_SOCKETS, WEBSOCKETS, WebSockets
from gateway.journal import Journal, PostgresStorage
from gateway.prompts.served_models import ServedModels
from gateway.relay import Embedder, Relay
from gateway.responses import ResponseStore
from gateway.runtime.fair_gate import FairGate
from gateway.scheduler import CostModel, Order, Priorities, Scheduler
from gateway.telemetry import metrics
from gateway.telemetry.span_exporter import SpanExporter
from gateway.telemetry.spans import traceparent_of
from gateway.telemetry.trace_recorder import TraceRecorder

_BODIES_BYTES = 512 << 20
"""Maximum size of all large bodies whose requests are not answered, in bytes."""


def build_services(
    settings: ServeSettings,
    pool: EnginePool,
    sink: FactSink,
    response_store: ResponseStore,
    recorder: TraceRecorder | None = None,
    exporter: SpanExporter | None = None,
) -> Services:
    """Return the sessions, the scheduler and the models over the engines of the pool."""

    def observe(call: Call) -> None:
        metrics.observe(call)
        if recorder is not None:
            recorder.observe(call)
        if exporter is not None:
            exporter.observe(call)

    weights = {tenant_of(key): weight for key, weight in settings.keys().items()}
    priorities = Priorities(CostModel(), Order(settings.order), weights)
    several = len(weights) > 1
    scheduler = Scheduler(
        pool,
        settings.max_calls,
        observe,
        several_tenants=several,
        priorities=priorities,
        fill_ahead=settings.fill_ahead,
        traceparent_of=None if exporter is None else traceparent_of,
    )
    store = SessionStore(
        cancel=scheduler.cancel,
        limits=session_limits(settings),
        ttl=settings.session_ttl,
        max_sessions=settings.max_sessions,
        max_sessions_per_tenant=settings.max_key_sessions,
        max_bytes=settings.max_held_bytes,
        max_waiters=min(4 * settings.max_waiters, resource.getrlimit(resource.RLIMIT_NOFILE)[1] // 2),
        several_tenants=several,
        sink=sink,
    )
    if isinstance(sink, Journal):
        sink.on_lost = store.fail
    return Services(
        sessions=store,
        scheduler=scheduler,
        models=ServedModels(settings.engine_wait),
        response_store=response_store,
        relay=Relay(pool, settings.max_calls, several_tenants=several),
        embedder=Embedder(pool, settings.max_calls, several_tenants=several),
        is_ready=lambda: pool.is_ready,
        describe_engines=pool.describe,
        max_wait_seconds=settings.max_wait,
        max_upload_bytes=settings.max_upload_bytes,
        exports_traces=exporter is not None,
    )


def session_limits(settings: ServeSettings) -> SessionLimits:
    """Return the limits of each session."""
    return SessionLimits(
        calls=settings.max_session_calls,
        variables=settings.max_session_variables,
        edges=settings.max_session_edges,
        value_bytes=settings.max_value_bytes,
        bytes=settings.max_session_bytes,
        depth=settings.max_depth,
        waiters=settings.max_waiters,
    )


def build_cluster(
    settings: ServeSettings,
    services: Services,
    storage: PostgresStorage,
    journal: Journal,
    resume: Callable[[Session], None],
    tls: ssl.SSLContext,
) -> tuple[Membership, Forwarding]:
    """Return this gateway's membership of the cluster on the journal, and the forwarding between its members.

    `resume`: resumes a session that another member had. `tls`: trusted certificates of the other members."""
    membership = Membership(storage, journal, services.sessions, session_limits(settings), resume)
    forwarding = Forwarding(storage, membership, services.sessions, requested_session, is_session_list, tls)
    return membership, forwarding


def build_app(settings: ServeSettings, services: Services, *inner: Middleware) -> web.Application:
    """Return the HTTP application over the services. `inner`: middlewares that run after authentication."""
    keys = ApiKeys(settings.keys())
    resources = [
        chat,
        messages,
        count_tokens,
        responses,
        socket,
        derived_routes,
        conversation_routes,
        completions,
        embeddings,
        relayed,
        tokens,
        models,
    ]
    resources += [sessions, variables, graphs, events, status, health]
    open_routes = {*OPEN_ROUTES, openapi.PATH, *live_page.OPEN_ROUTES}
    if settings.parrot_api:
        resources.append(parrot)
        open_routes |= parrot.open_routes()
    gate = AdmissionGate()
    app = web.Application(
        middlewares=[compression, errors, admission_gate(gate), authentication(keys, open_routes), *inner],
        client_max_size=settings.max_body_bytes,
    )
    if settings.cors_origin:
        app.on_response_prepare.append(cors_headers(settings.cors_origin))
    app[SERVICES] = services
    app[ADMISSION] = gate
    app[LARGE_BODY_GATE] = FairGate()
    app[SCHEMA_CHECK_GATE] = services.schema_check_gate
    several = len(settings.keys()) > 1
    app[BODY_BYTES_LIMIT] = SharedLimit(max(_BODIES_BYTES, 4 * settings.max_body_bytes), several=several)
    app[BACKGROUND] = Background(services, SharedLimit(max(1, settings.max_kept_bytes), several=several))
    app.on_cleanup.append(_close_background)
    app[WEBSOCKETS] = WebSockets(SharedLimit(MAX_SOCKETS, several=several), settings.cors_origin)
    app.on_shutdown.append(_close_websockets)
    if settings.parrot_api:
        app[parrot.PROGRAMS] = parrot.Programs(keys, services.sessions)
    status.add_status_cache(app)
    for module in resources:
        app.add_routes(module.routes)
    openapi.add_openapi_route(app, open_routes)
    app.add_routes(live_page.routes)  # after the document: its files are not part of the API
    return app


async def _close_websockets(app: web.Application) -> None:
    await app[WEBSOCKETS].close_all()


async def _close_background(app: web.Application) -> None:
    await app[BACKGROUND].close()
