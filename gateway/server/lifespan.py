"""The life of a gateway process: open the storage, listen, start the engines, serve, drain, close."""

import asyncio
import socket
import time
from contextlib import AsyncExitStack, suppress

from aiohttp import web

from gateway.accounts.errors import KeyStoreError
from gateway.accounts.key_sync import KeySync
from gateway.api.responses.background import BACKGROUND
from gateway.api.services import Services
from gateway.app import build_app, build_cluster, build_services
from gateway.cluster import Membership
from gateway.config.settings import ServeSettings
from gateway.engines.local.client import EngineStartFailed
from gateway.engines.pool import EnginePool
from gateway.graph.events import FactSink, NullSink
from gateway.graph.session import Session
from gateway.journal import Journal, JournalError, PostgresStorage
from gateway.responses import ResponseStore, ResponseStoreError
from gateway.server.engine_factory import EngineFactory
from gateway.server.gap_saver import GapSaver
from gateway.server.gc_tuning import GcTuner
from gateway.server.listener import allow_many_connections, listening, requested_address
from gateway.server.maintenance import maintain
from gateway.server.shutdown import drain, force_exit_after, run_unless_stopped, stop_on_signals
from gateway.server.storage import (
    JournalStorage,
    open_gap_store,
    open_journal_storage,
    open_key_store,
    open_ledger,
    open_response_store,
    open_shared_usage,
    restore_sessions,
)
from gateway.telemetry.span_exporter import SpanExporter
from gateway.telemetry.trace_recorder import TraceRecorder

_END_SECONDS = 30.0
"""Longest time from the end of the drain to the end of the process, in seconds."""


class StartFailed(Exception):
    """The gateway cannot start. The message is for the operator."""


class Lifespan:
    """One gateway process. What it opens is closed in the opposite order."""

    def __init__(self, settings: ServeSettings, pool: EnginePool, engines: EngineFactory, began: float) -> None:
        """`began`: start of the process, by the monotonic clock."""
        self._settings = settings
        self._pool = pool
        self._engines = engines
        self._began = began
        self._stop = asyncio.Event()
        self._stack = AsyncExitStack()
        self._tuner = GcTuner()
        self._storage: JournalStorage | None = None
        self._journal: Journal | None = None
        self._membership: Membership | None = None
        self._key_sync: KeySync | None = None
        self._gap_saver: GapSaver | None = None
        self._restored: list[Session] = []
        """Sessions of the process before this one."""

    async def run(self) -> None:
        """Serve until SIGTERM, SIGINT or SIGHUP, then let running answers finish. Raises StartFailed if the server
        cannot start."""
        allow_many_connections()
        stop_on_signals(self._stop)
        async with self._stack:
            services, store = await self._open()
            app = await self._build(services)
            address = await self._listen(app, store)
            if not await self._start_engines(services):
                return
            await self._resume(services, app)
            self._tuner.start()
            seconds = time.monotonic() - self._began
            print(f"myna serves {self._engines} at {address}/v1 (ready in {seconds:.1f} s)", flush=True)
            if self._settings.uds is None:
                print(f"the live page is at {address}/ui", flush=True)
            maintenance = asyncio.create_task(maintain(services, self._tuner), name="maintenance")
            self._stack.callback(maintenance.cancel)
            await self._stop.wait()
            if self._membership is not None:
                self._membership.set_takeover(False)
            await drain(services.scheduler, self._settings.drain, self._stop)
            force_exit_after(_END_SECONDS)

    async def _open(self) -> tuple[Services, ResponseStore]:
        """Open the journal and the response store, build the services, and restore the sessions."""
        settings, stack = self._settings, self._stack
        try:
            self._storage = await open_journal_storage(settings)
            if self._storage is not None:
                self._journal = Journal(self._storage)
                stack.push_async_callback(self._journal.close)
            store = await open_response_store(settings, self._storage)
            stack.push_async_callback(store.close)
            sink, recorder, exporter = self._journal or NullSink(), self._open_recorder(), self._start_exporter()
            services = await self._build_services(sink, store, recorder, exporter)
            self._restored = restore_sessions(settings, services.sessions, self._storage, self._journal)
            gap_store = open_gap_store(self._storage)
            if services.programs is not None and gap_store is not None:
                is_gone = services.accounts.is_gone if settings.admin_keys() else lambda tenant: False
                self._gap_saver = GapSaver(gap_store, services.programs, is_gone)
        except KeyStoreError as error:
            raise StartFailed(str(error)) from error
        except JournalError as error:
            hint = "use --journal FILE for another file, or --journal memory for none"
            raise StartFailed(f"{error} ({hint})") from error
        except OSError as error:
            raise StartFailed(f"cannot write {settings.record}: {error.strerror}") from error
        stack.push_async_callback(services.tools.close)
        services.tools.start()
        stack.push_async_callback(services.scheduler.close)
        stack.push_async_callback(self._engines.close)
        return services, store

    async def _build_services(
        self,
        sink: FactSink,
        store: ResponseStore,
        recorder: TraceRecorder | None,
        exporter: SpanExporter | None,
    ) -> Services:
        """Open the ledger, build the services and load the virtual keys. Raises JournalError and KeyStoreError."""
        settings = self._settings
        ledger = await open_ledger(settings, self._storage)
        if ledger is not None:
            self._stack.push_async_callback(ledger.close)
            ledger.start()
        if not settings.admin_keys():
            return build_services(settings, self._pool, sink, store, recorder, exporter, ledger)
        key_store, usage = open_key_store(self._storage), await open_shared_usage(self._storage)
        services = build_services(settings, self._pool, sink, store, recorder, exporter, ledger, key_store, usage)
        await services.key_admin.load()
        if usage is not None:
            self._key_sync = KeySync(services.accounts, services.key_admin, usage)
        return services

    def _open_recorder(self) -> TraceRecorder | None:
        """Return the recorder of the trace, if the settings ask for one. Raises OSError if the file cannot be
        opened."""
        if self._settings.record is None:
            return None
        file = self._settings.record.expanduser().open("a", buffering=1, encoding="utf-8")
        return TraceRecorder(self._stack.enter_context(file))

    def _start_exporter(self) -> SpanExporter | None:
        """Return the exporter of traces, if the settings name a collector. Raises StartFailed."""
        if self._settings.otlp_endpoint is None:
            return None
        try:
            exporter = SpanExporter(self._settings.otlp_endpoint)
        except ValueError as error:
            raise StartFailed(f"otlp_endpoint: {error}") from error
        exporter.start()
        self._stack.push_async_callback(exporter.close)
        return exporter

    async def _build(self, services: Services) -> web.Application:
        """Build the application, as a member of the cluster if the journal is shared."""
        if self._journal is None or not isinstance(self._storage, PostgresStorage):
            return build_app(self._settings, services)

        resumes: set[asyncio.Task[None]] = set()

        async def resume_unless_gone(session: Session) -> None:
            """Delete a session whose API key was deleted while its gateway was dying. The key may also be new."""
            with suppress(KeyStoreError):
                await services.key_admin.refresh()
            if services.accounts.is_gone(session.tenant):
                services.sessions.delete(session)
            else:
                services.scheduler.resume(session)
                app[BACKGROUND].resume(session)

        def resume(session: Session) -> None:
            if self._settings.admin_keys() and services.accounts.is_gone(session.tenant):
                resumes.add(task := asyncio.create_task(resume_unless_gone(session)))
                task.add_done_callback(resumes.discard)
                return
            services.scheduler.resume(session)
            app[BACKGROUND].resume(session)

        self._membership, forwarding = build_cluster(
            self._settings, services, self._storage, self._journal, resume, self._engines.upstream_tls
        )
        await forwarding.start()
        self._stack.push_async_callback(forwarding.close)
        app = build_app(self._settings, services, forwarding.middleware)
        return app

    async def _listen(self, app: web.Application, store: ResponseStore) -> str:
        """Listen, join the cluster, and return the address."""
        settings, stack = self._settings, self._stack
        try:
            address = await stack.enter_async_context(listening(app, settings))
        except OSError as error:
            where = requested_address(settings)
            raise StartFailed(f"cannot listen on {where}: {error.strerror or error}") from error
        # closed before connections are cut and calls cancelled: stored calls then continue after the next start
        if self._journal is not None:
            stack.push_async_callback(self._journal.close)
        stack.push_async_callback(store.close)
        if self._gap_saver is not None:  # closed before the journal, which has its database
            stack.push_async_callback(self._gap_saver.close)
            self._gap_saver.start()
        if self._membership is not None:
            stack.push_async_callback(self._membership.close)
            try:
                await self._membership.join(settings.advertise or address, socket.gethostname())
            except JournalError as error:
                raise StartFailed(str(error)) from error
            if self._key_sync is not None:
                stack.push_async_callback(self._key_sync.close)
                self._key_sync.start()
        return address

    async def _start_engines(self, services: Services) -> bool:
        """Start the engines and add their models. Return False if a signal arrives first."""
        try:
            if not await run_unless_stopped(self._stop, self._engines.start()):
                return False
        except EngineStartFailed as error:
            raise StartFailed(str(error)) from error
        stop_on_signals(self._stop)  # Ray has replaced the handlers
        for model in self._engines.models:
            services.models.add(model)
        services.models.set_aliases(self._settings.aliases(), self._settings.fallbacks())
        return True

    async def _resume(self, services: Services, app: web.Application) -> None:
        """Resume the calls and the background responses of restored sessions."""
        if self._settings.admin_keys():  # a key may have been deleted when the process before ended
            gone = [session for session in self._restored if services.accounts.is_gone(session.tenant)]
            for session in gone:
                services.sessions.delete(session)
                self._restored.remove(session)
        for session in self._restored:
            services.scheduler.resume(session)
        background = app[BACKGROUND]
        if self._membership is not None:
            background.has_resumed = True  # the membership resumes each session that it takes over
            self._membership.set_takeover(True)
            return
        try:
            await background.resume_all(self._restored)
        except ResponseStoreError as error:
            raise StartFailed(str(error)) from error
