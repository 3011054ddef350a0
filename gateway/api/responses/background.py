"""Responses in the background: clients poll, stream and cancel them by id, and they survive a crash.

Their calls are stored before the client gets its answer, as deferred calls are. If the client names no session, the
response has a session of its own, with the response's id, until it ends.
"""

import asyncio
import dataclasses
import logging
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from aiohttp import web

from compat.openai.responses import Response, ResponseRequest
from gateway.api.openai.tools import call_parsers
from gateway.api.responses.builder import (
    Event,
    ResponseBuilder,
    encode_events,
    error_of,
    last_event_of,
    replay_events,
    stored_response,
)
from gateway.api.responses.conversations import Turn, new_response_id
from gateway.api.schema_checks import AnswerChecks, checks_of
from gateway.api.semantic.extension import Scope
from gateway.api.services import Services
from gateway.api.subscription import subscribed
from gateway.errors import FailedCall, RequestError
from gateway.graph.call import Call, CallSpec, CallState
from gateway.graph.errors import Failure, GraphError
from gateway.graph.limits import SharedLimit
from gateway.graph.session import Addition, Session
from gateway.http.json_body import validate
from gateway.http.sse import EventStream
from gateway.prompts.served_models import ServedModel
from gateway.responses import ResponseStoreError, StoredResponse
from gateway.runtime.json_codec import encode_json

log = logging.getLogger("myna.responses")

_RECENT_BYTES = 16 << 20
"""Maximum size of the events of ended responses, in bytes, for clients that lost their connection at the end."""
_RESPONSE = "response"
"""Metadata key of a response's own session; its value is the response's id."""
_RETRY_SECONDS = 1.0
"""Interval between attempts to store an ended response, in seconds."""


class _ResumeData(msgspec.Struct):
    """Data stored to resume a response: the body of its request, its call, its time of creation, and whether the
    client named the session."""

    body: msgspec.Raw
    call: str
    created: int
    named: bool


_decode_resume_data = msgspec.json.Decoder(_ResumeData).decode
_decode_body = msgspec.json.Decoder().decode


class BackgroundResponse:
    """A response in the background while it is generated."""

    def __init__(
        self,
        services: Services,
        row: StoredResponse,
        builder: ResponseBuilder,
        call: Call,
        scope: Scope,
        *,
        resumed: bool = False,
    ) -> None:
        """`row`: the stored response while it is unfinished. `resumed`: whether another process has numbered its
        events; those numbers are lost."""
        self.row = row
        self.events: list[bytes] = []
        """Serialized events by number, once a client streams them."""
        self.final: Response | None = None
        """Final response, once it is stored."""
        self.finished = asyncio.Event()
        """Set once the final response is stored."""
        self._services = services
        self._builder = builder
        self._call = call
        self._scope = scope
        self._resumed = resumed
        self._recording: asyncio.Task[None] | None = None
        self._stopped = asyncio.Event()
        """Set once a client has cancelled it."""
        self._over = False
        """Whether the call has ended; only the response is still to be stored."""
        self._broken = False
        """Whether serializing the answer has failed."""
        self._changed = asyncio.Event()
        """Set, and replaced by a new one, when there are more events."""

    @property
    def response(self) -> Response:
        """Current state of the response."""
        if self.final is not None:
            return self.final
        waits = self._call.state in (CallState.WAITING, CallState.QUEUED)
        return self._builder.response("queued" if waits else "in_progress")

    async def run(self) -> None:
        """Wait for the answer, and store the response."""
        stopped = asyncio.ensure_future(self._stopped.wait())
        ended = asyncio.ensure_future(self._call.output.wait_final())
        try:
            await asyncio.wait((stopped, ended), return_when=asyncio.FIRST_COMPLETED)
            self._over = True
            if self._recording is not None:
                if self._stopped.is_set():
                    self._recording.cancel()
                await asyncio.wait([self._recording])
                if not self._recording.cancelled() and (error := self._recording.exception()) is not None:
                    log.error("internal error: the events of %s cannot be serialized", self.row.id, exc_info=error)
                    self._broken = True
            if not self._stopped.is_set() and (checking := self._builder.check()) is not None:
                await checking
            try:
                events, response = self._ending()
            except Exception:
                log.exception("internal error: the answer of %s cannot be serialized", self.row.id)
                self._broken = True
                events, response = self._ending()
            await self._keep(response)
            self.final = response
            if self._recording is not None:
                self._add_events([*events, self._builder.last_event(response)])
            self._wake()
            self.finished.set()
        finally:
            for task in (stopped, ended, self._recording):
                if task is not None:
                    task.cancel()
        if not self._scope.named:
            self._services.sessions.delete(self._scope.session)

    def _ending(self) -> tuple[list[Event], Response]:
        """Return the events before the last one, and the final response."""
        call, builder = self._call, self._builder
        if self._stopped.is_set() or call.state is CallState.CANCELLED:
            events = builder.interrupt()
            return events, builder.response("cancelled")
        if call.state is not CallState.DONE or self._broken:
            error = FailedCall(call.failure or Failure("internal_error", "the answer cannot be serialized"))
            events = builder.interrupt()
            return events, builder.failed(error)
        if self._recording is None:
            builder.grow(call.output.value or "", call.output.pieces)
        events = [*builder.open(), *builder.close()]
        return events, builder.ended()

    async def _keep(self, response: Response) -> None:
        row = dataclasses.replace(self.row, answer=encode_json(response), begun=b"", runs_in=None)
        while True:
            try:
                await self._services.archive.end(row)  # or it was deleted meanwhile
            except ResponseStoreError:
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                return

    def cancel(self) -> None:
        """Cancel the response. Its call continues if other calls or clients read its outputs."""
        session = self._scope.session
        for variable in self._call.outputs:
            if session.variables.get(variable.name) is variable:
                session.delete(variable.name)
            self._services.scheduler.release(variable)
        self._stopped.set()

    async def follow(self, request: web.Request, after: int) -> web.StreamResponse:
        """Stream the events behind the one numbered `after`, up to the last.

        If the numbers of the events are lost, stream only the last event; or, if `after` is -1, all events as if the
        response were generated now.
        """
        stream, session = EventStream(request), self._scope.session
        scheduler, output = self._services.scheduler, self._call.output
        with subscribed(scheduler, [output], session=session):
            if not self.record_events() or (self._resumed and after >= 0):
                await stream.with_heartbeats(self.finished.wait)
                events = replay_events(self.response) if after < 0 else last_event_of(self.response, after + 1)
                return await stream.end(events, done=False)
            at = after + 1
            while True:
                changed = self._changed
                if at < len(self.events):
                    events, at = b"".join(self.events[at:]), len(self.events)
                    if self.final is not None:
                        return await stream.end(events, done=False)
                    await stream.write(events)
                elif self.final is not None:
                    return await stream.end(b"", done=False)
                else:
                    await stream.with_heartbeats(changed.wait)

    def record_events(self) -> bool:
        """Begin to record the events, unless the call has ended. Return whether they are recorded."""
        if self._recording is None and not self._over:
            self._add_events(self._builder.queue())
            self._recording = asyncio.create_task(self._record(), name=f"events of {self.row.id}")
        return self._recording is not None

    async def _record(self) -> None:
        with self._scope.session.read(self._call.output) as reader:
            while not reader.is_exhausted:
                try:
                    pieces = await reader.next_pieces()
                except GraphError:  # that it is shown cannot be kept now, and so it is not shown
                    await asyncio.sleep(_RETRY_SECONDS)
                    continue
                if pieces:
                    text = "".join([piece.text for piece in pieces])
                    self._add_events([*self._builder.open(), *self._builder.grow(text, pieces)])

    def _add_events(self, events: Iterable[Event]) -> None:
        self.events += [encode_events([event]) for event in events]
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class Background:
    """Owner of all responses in the background."""

    def __init__(self, services: Services, held: SharedLimit) -> None:
        """`held`: limit on the bytes of responses in progress; each counts until it has ended."""
        self._services = services
        self._held = held
        self._works: dict[tuple[str, str], BackgroundResponse] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._recent: OrderedDict[tuple[str, str], Sequence[bytes]] = OrderedDict()
        """Events of responses that have ended, oldest first."""
        self._recent_bytes = 0
        self.resumed = False
        """Whether all responses that this process resumes are known. Others that are unfinished are lost."""

    def find(self, tenant: str, id: str) -> BackgroundResponse | None:
        """Return the response while it is in progress."""
        return self._works.get((tenant, id))

    def recent_events(self, tenant: str, id: str) -> Sequence[bytes]:
        """Return the events of a response that has ended recently, if a client has streamed it."""
        return self._recent.get((tenant, id), ())

    async def begin(
        self, raw: bytes, body: ResponseRequest, model: ServedModel, scope: Scope, turn: Turn, spec: CallSpec
    ) -> BackgroundResponse:
        """Start the call. `raw`: the body of the request. Once this returns, the response will be completed, even after
        a crash.

        Raises GraphError or RequestError; then nothing has changed.
        """
        id, tenant = new_response_id(), scope.session.tenant
        if not self._held.has_room(tenant, 2 * len(raw)):  # the body is stored once to be read and once to be resumed
            message = f"responses in progress of this key hold {self._held.amount(tenant)} bytes, the current maximum"
            raise RequestError(429, message, code="overloaded")
        if not scope.named:
            own = self._services.sessions.create(tenant, id, metadata={_RESPONSE: id})
            scope = Scope(own, named=False, deferred=False)
        try:
            addition = scope.session.add_all([dataclasses.replace(spec, deferred=True)])
        except GraphError:
            self._discard_session(scope)
            raise
        (call,) = addition.calls
        builder = ResponseBuilder(body, model, scope, call, id, checks=self._checks(body, model, tenant), keeps=True)
        response = builder.response("queued")
        begun = _ResumeData(msgspec.Raw(raw), call.id, response.created_at, scope.named)
        row = turn.kept(response, raw, slots=spec.parts is not None)
        row = dataclasses.replace(row, begun=encode_json(begun), runs_in=scope.session.id)
        work = BackgroundResponse(self._services, row, builder, call, scope)
        self._add(work)
        # a client that leaves now must not leave half of it
        await asyncio.shield(self._spawn(self._start(work, addition, turn, scope, body.streamed)))
        return work

    async def _start(
        self, work: BackgroundResponse, addition: Addition, turn: Turn, scope: Scope, streamed: bool
    ) -> None:
        archive, scheduler, session = self._services.archive, self._services.scheduler, scope.session
        try:
            await archive.keep(work.row, turn.earlier)
        except ResponseStoreError as error:
            failure = Failure(error.code, str(error))
            session.set_values(addition, failure)
            for call in addition.calls:
                scheduler.cancel(call, failure)
            self._remove(work)
            self._discard_session(scope)
            raise
        self._spawn(self._run(work))
        if streamed:
            work.record_events()
        try:
            await scheduler.start(session, addition, promised=True)
        except GraphError:
            work.cancel()
            raise

    def _checks(self, body: ResponseRequest, model: ServedModel, tenant: str) -> AnswerChecks | None:
        return checks_of(body.chat, call_parsers(body.chat, model), self._services.schema_check_gate, tenant)

    def _add(self, work: BackgroundResponse) -> None:
        self._works[work.row.tenant, work.row.id] = work
        self._held.add(work.row.tenant, work.row.size)

    def _remove(self, work: BackgroundResponse) -> None:
        del self._works[work.row.tenant, work.row.id]
        self._held.remove(work.row.tenant, work.row.size)

    def _discard_session(self, scope: Scope) -> None:
        if not scope.named:
            self._services.sessions.delete(scope.session)

    async def _run(self, work: BackgroundResponse) -> None:
        key = (work.row.tenant, work.row.id)
        try:
            await work.run()
        finally:
            self._remove(work)
            if work.events:
                self._recent[key] = work.events
                self._recent_bytes += sum(map(len, work.events))
        while self._recent_bytes > _RECENT_BYTES:
            _, events = self._recent.popitem(last=False)
            self._recent_bytes -= sum(map(len, events))

    def _spawn(self, work: Any) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, GraphError):
            log.error("internal error: a response in the background failed", exc_info=error)

    # after a restart, and where a session comes from another gateway

    async def resume_all(self, restored: Sequence[Session]) -> None:
        """Resume all responses that were in progress when the process before this one ended.

        `restored`: the restored sessions; their calls are already resumed. Raises ResponseStoreError.
        """
        rows = await self._services.archive.unfinished()
        for row in rows:
            await self._resume_one(row)
        wanted = {(row.tenant, row.runs_in) for row in rows}
        for session in restored:
            if (session.tenant, session.id) not in wanted:
                self._end_if_own(session)
        self.resumed = True

    def resume(self, session: Session) -> None:
        """Resume the responses in a session that another gateway had."""
        self._spawn(self._resume(session))

    async def _resume(self, session: Session) -> None:
        while True:
            try:
                rows = await self._services.archive.unfinished(session.tenant, session.id)
                for row in rows:
                    await self._resume_one(row)
            except ResponseStoreError as error:
                log.warning("what session %s was to answer is asked for again: %s", session.id, error)
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                break
        if not rows:
            self._end_if_own(session)

    def _end_if_own(self, session: Session) -> None:
        """Delete a session that belonged to a response that has ended."""
        if session.metadata.get(_RESPONSE) == session.id:
            self._services.sessions.delete(session)

    async def _resume_one(self, row: StoredResponse) -> None:
        begun = _decode_resume_data(row.begun)
        sessions = self._services.sessions
        session = sessions.get(row.tenant, row.runs_in or "") if sessions.holds(row.tenant, row.runs_in or "") else None
        call = None if session is None else session.calls.get(begun.call)
        if session is None or call is None:
            await self.lose(row)
            return
        try:
            body = validate(_decode_body(begun.body), ResponseRequest)
            model = await self._services.models.get(body.model)
        except RequestError as error:
            self._services.scheduler.cancel(call, Failure("interrupted", str(error), call.id))
            await self.lose(row, str(error))
            return
        if (row.tenant, row.id) in self._works:  # it has only just begun
            return
        scope = Scope(session, begun.named, deferred=False)
        checks = self._checks(body, model, row.tenant)
        builder = ResponseBuilder(body, model, scope, call, row.id, checks=checks, keeps=True, created=begun.created)
        work = BackgroundResponse(self._services, row, builder, call, scope, resumed=True)
        self._add(work)
        self._spawn(self._run(work))

    async def lose(self, row: StoredResponse, why: str = "the server ended before this was begun") -> None:
        """Store that a response has failed because its call is lost. Raises ResponseStoreError."""
        error = error_of(FailedCall(Failure("interrupted", why)))
        response = msgspec.structs.replace(stored_response(row), status="failed", error=error)
        lost = dataclasses.replace(row, answer=encode_json(response), begun=b"", runs_in=None)
        await self._services.archive.end(lost)  # unless it has ended meanwhile

    async def close(self) -> None:
        """Stop without ending the responses: another process resumes them."""
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


BACKGROUND = web.AppKey("background", Background)
