"""Puts the house together: the only room that knows all others. Start-up, and graceful stop."""

import asyncio
import faulthandler
import logging
import os
import resource
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Middleware

from gateway.api import health
from gateway.api.openai import chat, completions, models
from gateway.api.openai import tokenize as tokens
from gateway.api.parrot import routes as parrot
from gateway.api.responses import routes as responses
from gateway.api.responses.background import BACKGROUND, Background
from gateway.api.semantic import events, graphs, sessions, variables
from gateway.api.services import SERVICES, Services
from gateway.cluster import Forwarding, Membership
from gateway.cluster.session_routing import lists_sessions, session_in
from gateway.config.settings import ServeSettings
from gateway.engines.local.client import EngineStartFailed
from gateway.engines.pool import EnginePool
from gateway.graph.call import Call
from gateway.graph.events import Log, NoLog
from gateway.graph.limits import SharedLimit
from gateway.graph.session import Session, SessionLimits
from gateway.graph.store import SessionStore
from gateway.http import openapi
from gateway.http.connections import Runner
from gateway.http.json_body import BODIES_HELD, FORM_CHECKS, LARGE_BODIES
from gateway.http.middleware.admission import admission_gate
from gateway.http.middleware.auth import OPEN_ROUTES, Keys, authentication, tenant_of
from gateway.http.middleware.compression import compression
from gateway.http.middleware.cors import cross_origin
from gateway.http.middleware.errors import errors
from gateway.journal import FileStorage, Journal, JournalError, PostgresStorage
from gateway.prompts.served_models import ServedModels
from gateway.responses import (
    MemoryDatabase,
    PostgresResponseStore,
    ResponseStore,
    ResponseStoreError,
    SqliteResponseStore,
)
from gateway.runtime.fair_gate import FairGate
from gateway.scheduler import CostModel, Order, Priorities, Scheduler
from gateway.server.engine_factory import EngineFactory
from gateway.server.gc_tuning import GcTuner
from gateway.server.tls import tls_context
from gateway.telemetry import metrics
from gateway.telemetry.trace_recorder import TraceRecorder

log = logging.getLogger("myna")

_TIDY_SECONDS = 1.0
_SWEEP_SECONDS = 5.0
_END_SECONDS = 30.0
"""Longest time from the end of `--drain` to the end of the process, in seconds."""
_BODIES_BYTES = 512 << 20
"""Bytes of large bodies whose requests have not been answered, of all keys together."""
_BACKLOG = 1024


def build_services(
    settings: ServeSettings, pool: EnginePool, log: Log, archive: ResponseStore, recorder: TraceRecorder | None = None
) -> Services:
    """The domain and the scheduler over the pool's engines."""

    def observe(call: Call) -> None:
        metrics.observe(call)
        if recorder is not None:
            recorder.observe(call)

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
    )
    store = SessionStore(
        cancel=scheduler.cancel,
        bounds=session_bounds(settings),
        ttl=settings.session_ttl,
        max_sessions=settings.max_sessions,
        max_sessions_per_tenant=settings.max_key_sessions,
        max_bytes=settings.max_held_bytes,
        max_waiters=min(4 * settings.max_waiters, resource.getrlimit(resource.RLIMIT_NOFILE)[1] // 2),
        several_tenants=several,
        log=log,
    )
    if isinstance(log, Journal):
        log.on_lost = store.lose
    return Services(
        sessions=store,
        scheduler=scheduler,
        models=ServedModels(settings.engine_wait),
        archive=archive,
        ready=lambda: pool.ready,
        max_wait_seconds=settings.max_wait,
    )


def session_bounds(settings: ServeSettings) -> SessionLimits:
    """How large one session may grow."""
    return SessionLimits(
        calls=settings.max_session_calls,
        variables=settings.max_session_variables,
        edges=settings.max_session_edges,
        value_bytes=settings.max_value_bytes,
        bytes=settings.max_session_bytes,
        depth=settings.max_depth,
        waiters=settings.max_waiters,
    )


def build_peers(
    settings: ServeSettings,
    services: Services,
    storage: PostgresStorage,
    journal: Journal,
    resume: Callable[[Session], None],
    tls: ssl.SSLContext,
) -> tuple[Membership, Forwarding]:
    """Our place among the gateways on one journal. `resume` goes on with a session that was another's; `tls`: whom to
    trust of them."""
    membership = Membership(storage, journal, services.sessions, session_bounds(settings), resume)
    forwarding = Forwarding(storage, membership, services.sessions, session_in, lists_sessions, tls)
    return membership, forwarding


def build_app(settings: ServeSettings, services: Services, *inner: Middleware) -> web.Application:
    """The HTTP application over the services. `inner`: what comes behind authentication."""
    keys = Keys(settings.keys())
    resources = [chat, responses, completions, tokens, models, sessions, variables, graphs, events, health]
    open_routes = {*OPEN_ROUTES, openapi.PATH}
    if settings.parrot_api:
        resources.append(parrot)
        open_routes |= parrot.open_routes()
    app = web.Application(
        middlewares=[compression, errors, admission_gate(), authentication(keys, open_routes), *inner],
        client_max_size=settings.max_body_bytes,
    )
    if settings.cors_origin:
        app.on_response_prepare.append(cross_origin(settings.cors_origin))
    app[SERVICES] = services
    app[LARGE_BODIES] = FairGate()
    app[FORM_CHECKS] = services.form_checks
    several = len(settings.keys()) > 1
    app[BODIES_HELD] = SharedLimit(max(_BODIES_BYTES, 4 * settings.max_body_bytes), several=several)
    app[BACKGROUND] = Background(services, SharedLimit(max(1, settings.max_kept_bytes), several=several))
    app.on_cleanup.append(_let_go)
    if settings.parrot_api:
        app[parrot.PROGRAMS] = parrot.Programs(keys, services.sessions)
    for one in resources:
        app.add_routes(one.routes)
    openapi.serving(app, open_routes)
    return app


async def _let_go(app: web.Application) -> None:
    await app[BACKGROUND].close()


@asynccontextmanager
async def listening(app: web.Application, settings: ServeSettings) -> AsyncIterator[str]:
    """Listens until the context ends; yields the address. Raises OSError if it cannot."""
    runner = Runner(app, shutdown_timeout=0.5)
    await runner.setup()
    try:
        tls = tls_context(settings.tls_cert, settings.tls_key)
        if settings.uds is not None:
            path = settings.uds.expanduser()
            await web.UnixSite(runner, path, ssl_context=tls, backlog=_BACKLOG).start()
            try:
                yield f"unix:{path}"
            finally:
                path.unlink(missing_ok=True)
            return
        await web.TCPSite(runner, settings.host, settings.port, ssl_context=tls, backlog=_BACKLOG).start()
        host, port = runner.addresses[0][:2]
        yield f"{'http' if tls is None else 'https'}://{f'[{host}]' if ':' in host else host}:{port}"
    finally:
        await runner.cleanup()


def allow_many_connections() -> None:
    """As many open files as the system lets us have: each connection is one, and the usual limit is 1,024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def serve(settings: ServeSettings, pool: EnginePool, fleet: EngineFactory, began: float) -> int:
    """Serve until SIGTERM, SIGINT or SIGHUP, then let running answers finish. Return the exit status. `began`: start of
    the process, by the monotonic clock."""
    allow_many_connections()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    _stop_on_signals(loop, stop)
    collector = GcTuner()
    async with AsyncExitStack() as stack:
        try:
            storage = await _open_storage(settings)
            journal = None if storage is None else Journal(storage)
            if journal is not None:
                stack.push_async_callback(journal.close)
            archive = await open_archive(settings, storage)
            stack.push_async_callback(archive.close)
            services = build_services(settings, pool, journal or NoLog(), archive, _recorder(settings, stack))
            restored = _restore(settings, services.sessions, storage, journal)
        except JournalError as error:
            print(f"myna: {error} (--journal FILE names another, --journal memory does without)", file=sys.stderr)
            return 1
        except OSError as error:
            print(f"myna: cannot write {settings.record}: {error.strerror}", file=sys.stderr)
            return 1
        stack.push_async_callback(services.scheduler.close)
        stack.push_async_callback(fleet.close)
        membership, inner = None, []
        if journal is not None and isinstance(storage, PostgresStorage):

            def resume(session: Session) -> None:
                services.scheduler.resume(session)
                app[BACKGROUND].resume(session)

            membership, forwarding = build_peers(settings, services, storage, journal, resume, fleet.https)
            await forwarding.start()
            stack.push_async_callback(forwarding.close)
            inner.append(forwarding.middleware)
        app = build_app(settings, services, *inner)
        try:
            address = await stack.enter_async_context(listening(app, settings))
        except OSError as error:
            print(f"myna: cannot listen on {_where(settings)}: {error.strerror or error}", file=sys.stderr)
            return 1
        # before clients are cut off and calls are cancelled: all that is to go on after the next start, or elsewhere
        if journal is not None:
            stack.push_async_callback(journal.close)
        stack.push_async_callback(archive.close)
        if membership is not None:
            stack.push_async_callback(membership.close)
            try:
                await membership.join(settings.advertise or address, socket.gethostname())
            except JournalError as error:
                print(f"myna: {error}", file=sys.stderr)
                return 1
        try:
            if not await _unless(stop, fleet.start()):
                return 0
        except EngineStartFailed as error:
            print(f"myna: {error}", file=sys.stderr)
            return 1
        _stop_on_signals(loop, stop)  # Ray has put its own handlers in their place
        for model in fleet.models:
            services.models.add(model)
        services.models.relate(settings.aliases(), settings.fallbacks())
        for session in restored:
            services.scheduler.resume(session)
        if membership is None:
            try:
                await app[BACKGROUND].resume_all(restored)
            except ResponseStoreError as error:
                print(f"myna: {error}", file=sys.stderr)
                return 1
        else:
            app[BACKGROUND].resumed = True  # session by session
            membership.inherit()
        collector.begin()
        print(f"myna serves {fleet} at {address}/v1 (ready in {time.monotonic() - began:.1f} s)", flush=True)
        sweeper = asyncio.create_task(_sweep(services, collector), name="sweep")
        stack.callback(sweeper.cancel)
        await stop.wait()
        if membership is not None:
            membership.inherit(False)
        await _drain(services, settings.drain, stop)
        _end_within(_END_SECONDS)
    return 0


def _stop_on_signals(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # `nohup` ignores hangups
            loop.add_signal_handler(number, stop.set)


def _where(settings: ServeSettings) -> str:
    """Where it was to listen, for a complaint."""
    where = f"{settings.host}:{settings.port}" if settings.uds is None else str(settings.uds)
    return where if settings.tls_cert is None else f"{where} with the certificate {settings.tls_cert}"


def _recorder(settings: ServeSettings, stack: AsyncExitStack) -> TraceRecorder | None:
    """What writes the trace, if one is wanted; closed at the end. Raises OSError."""
    if settings.record is None:
        return None
    return TraceRecorder(stack.enter_context(settings.record.expanduser().open("a", buffering=1, encoding="utf-8")))


async def _open_storage(settings: ServeSettings) -> FileStorage | PostgresStorage | None:
    """What sessions are kept in, if in anything. Raises JournalError."""
    url, path = settings.journal_url(), settings.journal_file()
    if url is not None:
        storage = PostgresStorage(url, settings.lease, _stop_at_once)
        await storage.start()
        return storage
    return None if path is None else await asyncio.to_thread(FileStorage, path)


async def open_archive(settings: ServeSettings, storage: FileStorage | PostgresStorage | None) -> ResponseStore:
    """What responses are kept in. Raises JournalError."""
    bounds = (settings.max_kept_bytes, settings.response_ttl)
    if isinstance(storage, PostgresStorage):
        try:
            return await PostgresResponseStore.open(storage, *bounds)
        except ResponseStoreError as error:
            raise JournalError(f"the journal at {storage.name} cannot be used: {error}") from error
    return SqliteResponseStore(storage or MemoryDatabase(), *bounds, owns=storage is None)


def _stop_at_once() -> None:
    """Other gateways go on with our sessions. Nobody may be told any more how they went on here."""
    print("myna: other gateways have taken this one for dead and its sessions over; start it anew", file=sys.stderr)
    sys.stderr.flush()
    os._exit(1)


def _restore(
    settings: ServeSettings, store: SessionStore, storage: FileStorage | PostgresStorage | None, journal: Journal | None
) -> list[Session]:
    """Takes in the sessions of the process before this one. Raises JournalError."""
    if journal is None or not isinstance(storage, FileStorage):
        return []
    for tenant, id in storage.expired():
        store.remember(tenant, id)
    sessions = journal.restore(storage.rows(), session_bounds(settings))
    for session in sessions:
        store.adopt(session)
    return sessions


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Awaits the work, or gives it up when `stop` comes first. Whether it was done."""
    task = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait((task, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if task.done():
        task.result()
        return True
    task.cancel()
    return False


async def _sweep(services: Services, collector: GcTuner) -> None:
    """Run periodic work. An exception must not end this coroutine: no other code does this work."""
    swept = time.monotonic()
    while True:
        await asyncio.sleep(_TIDY_SECONDS)
        try:
            services.sessions.dissolve_ended()
            if time.monotonic() - swept >= _SWEEP_SECONDS:
                swept = time.monotonic()
                await _tidy(services, swept)
                collector.sweep(idle=not services.scheduler.unfinished)
        except Exception:
            log.exception("periodic work failed; next attempt in %g s", _TIDY_SECONDS)


async def _tidy(services: Services, now: float) -> None:
    """Delete expired sessions and responses, and end calls that can make no progress. `now`: monotonic clock."""
    expired = services.sessions.expire(now)
    services.scheduler.end_stuck(services.sessions.all())
    try:
        if expired:
            await services.archive.forget_sessions([(session.tenant, session.id) for session in expired])
        await services.archive.tidy()
    except ResponseStoreError as error:
        log.warning("%s", error)


def _end_within(seconds: float) -> None:
    """End the process after this time, even if something hangs: for example a disk that does not answer."""

    def end() -> None:
        print(f"myna: not everything ended within {seconds:g} s; the process ends now", file=sys.stderr)
        faulthandler.dump_traceback()
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


async def _drain(services: Services, seconds: float, stop: asyncio.Event) -> None:
    """Takes no new work and waits for what runs, at most so long; a second signal ends the wait."""
    services.scheduler.stop_admitting()
    unfinished = services.scheduler.unfinished
    if not unfinished:
        return
    log.info("stopping: %d calls may finish within %g s; a second signal ends them", unfinished, seconds)
    stop.clear()
    waits = [asyncio.ensure_future(services.scheduler.drained()), asyncio.ensure_future(stop.wait())]
    await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    if services.scheduler.unfinished:
        log.warning("%d calls did not finish and were cancelled", services.scheduler.unfinished)
