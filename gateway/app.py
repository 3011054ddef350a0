"""The composition root: build the services and the HTTP application from the settings."""

import resource
import ssl
from collections.abc import Callable

from aiohttp import web
from aiohttp.typedefs import Middleware

from gateway.accounts.accounts import Accounts
from gateway.accounts.keys.key_admin import KeyAdmin
from gateway.accounts.keys.key_store import KeyStore
from gateway.accounts.ledger.ledger import Ledger
from gateway.accounts.limits.key_limits import WaitingRule
from gateway.accounts.limits.shared_usage import SharedUsage
from gateway.api import health, live_page, programs, status, usage
from gateway.api.admin import keys as admin_keys
from gateway.api.anthropic import count_tokens, messages
from gateway.api.openai import chat, completions, embeddings, models, relayed
from gateway.api.openai import tokenize as tokens
from gateway.api.parrot import routes as parrot
from gateway.api.program_tracker import ProgramTracker
from gateway.api.responses import conversation_routes, derived_routes, socket
from gateway.api.responses import routes as responses
from gateway.api.responses.background import BACKGROUND, Background
from gateway.api.responses.mcp_history import USED_APPROVALS, UsedApprovals
from gateway.api.semantic import events, graphs, sessions, variables
from gateway.api.semantic.agent_prompts import RequestAgentPrompts
from gateway.api.services import SERVICES, Services
from gateway.cluster import Forwarding, Membership
from gateway.cluster.session_routing import is_session_list, requested_session
from gateway.config.settings import ServeSettings
from gateway.engines.pool import EnginePool
from gateway.graph.call import Call
from gateway.graph.errors import Failure
from gateway.graph.events import FactSink
from gateway.graph.limits import SessionLimits, SharedLimit
from gateway.graph.session import Session
from gateway.graph.session_store import SessionStore
from gateway.http import openapi
from gateway.http.json_body import BODY_BYTES_LIMIT, LARGE_BODY_GATE, SCHEMA_CHECK_GATE
from gateway.http.middleware.admission import ADMISSION, AdmissionGate, admission_gate
from gateway.http.middleware.auth import METRICS_ROUTE, OPEN_ROUTES, ApiKeys, authentication, tenant_of
from gateway.http.middleware.cors import cors_headers
from gateway.http.middleware.errors import errors
from gateway.http.middleware.key_limits import key_limits
from gateway.http.websocket import MAX_SOCKETS, WEBSOCKETS, WebSockets
from gateway.journal import Journal, PostgresStorage
from gateway.programs import ProgramIndex
from gateway.prompts.normalize import NormalizePrompts
from gateway.prompts.served_models import ServedModels
from gateway.relay import Embedder, Relay
from gateway.responses import ResponseStore
from gateway.runtime.fair_gate import FairGate
from gateway.scheduler import CostModel, Order, Priorities, Scheduler
from gateway.telemetry import metrics
from gateway.telemetry.span_exporter import SpanExporter
from gateway.telemetry.spans import traceparent_of
from gateway.telemetry.trace_recorder import TraceRecorder
from gateway.tools.tool_servers import ToolServers

_BODIES_BYTES = 512 << 20
"""Maximum size of all large bodies whose requests are not answered, in bytes."""


def build_services(
    settings: ServeSettings,
    pool: EnginePool,
    sink: FactSink,
    response_store: ResponseStore,
    recorder: TraceRecorder | None = None,
    exporter: SpanExporter | None = None,
    ledger: Ledger | None = None,
    key_store: KeyStore | None = None,
    shared_usage: SharedUsage | None = None,
) -> Services:
    """Return the sessions, the scheduler and the models over the engines of the pool. `key_store`: storage of virtual
    keys, in memory by default. `shared_usage`: what all gateways have used, if several share the journal."""
    prices = settings.prices()

    def observe(call: Call) -> None:
        metrics.observe(call)
        is_spend = bool(call.spec.model) or call.has_run_tool
        spend = None if ledger is None or not is_spend else ledger.observe(call)
        limits = accounts.limits_of(call.session.tenant)
        if limits is not None:
            if spend is None:
                prompt, _, completion = call.spent_tokens
                limits.settle(call.id, prompt + completion, prices.cost_of_call(call))
            else:
                limits.settle(call.id, spend.prompt + spend.completion, spend.cost)
        if tracker is not None:
            tracker.observe(call)
        if recorder is not None:
            recorder.observe(call)
        if exporter is not None:
            exporter.observe(call)

    tracker: ProgramTracker | None = None  # set below, once it is known whether there can be several keys
    models = ServedModels(settings.engine_wait)
    waiting = WaitingRule(settings.over_limit_wait if settings.over_limit == "wait" else 0.0)
    accounts = Accounts(models.window_of, prices, waiting, shared_usage)
    if ledger is not None:
        ledger.tags_of = accounts.tags_of
    accounts.weights.update({tenant_of(key): weight for key, weight in settings.keys().items()})

    def served_to(tenant: str) -> ServedModels:
        may_use = accounts.may_use(tenant)
        return models if may_use is None else models.restricted(may_use)

    order = Order(settings.order)
    pauses = settings.pause_programs and order is Order.NEED
    priorities = Priorities(CostModel(), order, accounts.weights, orders_programs=pauses, window_of=models.window_of)
    has_virtual_keys = bool(settings.admin_keys())
    several = len(accounts.weights) > 1 or has_virtual_keys
    tools = ToolServers(settings.tool_settings())
    scheduler = Scheduler(
        pool,
        settings.max_calls,
        observe,
        several_tenants=several,
        priorities=priorities,
        fill_ahead=settings.fill_ahead,
        pause_programs=pauses,
        traceparent_of=None if exporter is None else traceparent_of,
        tools=tools,
        agent_prompts=RequestAgentPrompts(served_to),
    )
    if settings.programs:
        tracker = ProgramTracker(
            ProgramIndex(several_tenants=several),
            prices.cost_of_call if prices else None,
            on_gap=scheduler.expect_return,
            forget_service=priorities.programs.forget_some,
        )
        tracker.index.on_forgotten = scheduler.forget_program
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
        price_of=prices.of,
        fail_calls=scheduler.fail_calls,
        call_gate=accounts if has_virtual_keys else None,
    )

    def end_key(id: str, is_deleted: bool) -> None:
        reason = "deleted" if is_deleted else "disabled"
        scheduler.cancel_tenant(id, Failure("cancelled", f"the API key of this call was {reason}"))
        if is_deleted:
            store.delete_all_of(id)
            if tracker is not None:
                tracker.forget_tenant(id)

    accounts.on_end = end_key
    if isinstance(sink, Journal):
        sink.on_lost = store.fail
    if exporter is not None and settings.otlp_texts:
        exporter.include_texts(models.decode)
    return Services(
        sessions=store,
        scheduler=scheduler,
        models=models,
        response_store=response_store,
        relay=Relay(pool, settings.max_calls, several_tenants=several),
        embedder=Embedder(pool, settings.max_calls, several_tenants=several),
        accounts=accounts,
        key_admin=KeyAdmin(accounts, key_store, ledger if shared_usage is None else None),
        is_ready=lambda: pool.is_ready,
        describe_engines=pool.describe,
        max_wait_seconds=settings.max_wait,
        max_upload_bytes=settings.max_upload_bytes,
        exporter=exporter,
        ledger=ledger,
        prices=prices,
        normalize_prompts=NormalizePrompts(settings.normalize_prompts),
        programs=tracker,
        tools=tools,
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
    admin, accounts = settings.admin_keys(), services.accounts
    keys = ApiKeys(settings.keys(), admin, accounts.directory.authenticate if admin else None)
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
    resources += [sessions, variables, graphs, events, programs, usage, status, health]
    open_routes = {*OPEN_ROUTES, openapi.PATH, *live_page.OPEN_ROUTES}
    if not settings.open_metrics:
        open_routes.discard(METRICS_ROUTE)
    if settings.parrot_api:
        resources.append(parrot)
        open_routes |= parrot.open_routes()
    if admin:
        resources.append(admin_keys)
        inner = (*inner, key_limits(accounts))
    gate = AdmissionGate()
    app = web.Application(
        middlewares=[errors, admission_gate(gate), authentication(keys, open_routes), *inner],
        client_max_size=settings.max_body_bytes,
    )
    if settings.cors_origin:
        app.on_response_prepare.append(cors_headers(settings.cors_origin))
    app[SERVICES] = services
    app[ADMISSION] = gate
    app[LARGE_BODY_GATE] = FairGate()
    app[SCHEMA_CHECK_GATE] = services.schema_check_gate
    several = bool(admin) or len(settings.keys()) > 1
    app[BODY_BYTES_LIMIT] = SharedLimit(max(_BODIES_BYTES, 4 * settings.max_body_bytes), several=several)
    app[USED_APPROVALS] = UsedApprovals(services.response_store)
    app[BACKGROUND] = Background(services, SharedLimit(max(1, settings.max_kept_bytes), several=several))
    app.on_cleanup.append(_close_background)
    app.on_cleanup.append(_close_programs)
    app[WEBSOCKETS] = WebSockets(SharedLimit(MAX_SOCKETS, several=several), settings.cors_origin)
    app.on_shutdown.append(_close_websockets)
    if settings.parrot_api:
        app[parrot.PROGRAMS] = parrot.Programs(keys, services.sessions, accounts)
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


async def _close_programs(app: web.Application) -> None:
    tracker = app[SERVICES].programs
    if tracker is not None:
        await tracker.close()
