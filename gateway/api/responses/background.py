"""Responses in the background: clients poll, stream and cancel them by id, and they survive a crash.

Their calls are stored before the client gets its answer, as deferred calls are. If the client names no session, the
response has a session of its own, with the response's id, until it ends.
"""

import asyncio
import dataclasses
import logging
from collections import OrderedDict
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any

import msgspec
from aiohttp import web

from compat.openai.responses import Response, ResponseRequest
from gateway.api.openai.tools import tool_call_parser_factory
from gateway.api.pipeline import Target, join_program
from gateway.api.program_tracker import RequestFacts
from gateway.api.responses.agent_events import agent_events
from gateway.api.responses.builder import (
    Event,
    ResponseBuilder,
    encode_events,
    error_of,
    last_event_of,
    replay_events,
    stored_response,
)
from gateway.api.responses.conversation_store import append_response
from gateway.api.responses.conversations import Turn, new_response_id
from gateway.api.responses.mcp_setup import McpSetup, without_secrets
from gateway.api.schema_checks import AnswerChecker, answer_checker_of
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
    """Data stored to resume a response: the body of its request, its call, its time of creation, whether the client
    named the session, and the MCP servers of the request."""

    body: msgspec.Raw
    call: str
    created: int
    named: bool
    setup: McpSetup | None = None


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
        model: ServedModel,
        *,
        is_resumed: bool = False,
    ) -> None:
        """`row`: the stored response while it is unfinished. `is_resumed`: whether another process has numbered its
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
        self._model = model
        self._is_resumed = is_resumed
        self._recording: asyncio.Task[None] | None = None
        self._cancelled = asyncio.Event()
        """Set once a client has cancelled it."""
        self._call_ended = False
        """Whether the call has ended; only the response is still to be stored."""
        self._serialization_failed = False
        """Whether serializing the answer has failed."""
        self._changed = asyncio.Event()
        """Set, and replaced by a new one, when there are more events."""

    @property
    def response(self) -> Response:
        """Current state of the response."""
        if self.final is not None:
            return self.final
        waits = self._call.state in (CallState.WAITING, CallState.QUEUED)
        return self._builder.build_response("queued" if waits else "in_progress")

    async def run(self) -> None:
        """Wait for the answer, and store the response."""
        cancelled = asyncio.ensure_future(self._cancelled.wait())
        ended = asyncio.ensure_future(self._call.output.wait_final())
        try:
            await asyncio.wait((cancelled, ended), return_when=asyncio.FIRST_COMPLETED)
            self._call_ended = True
            if self._recording is not None:
                if self._cancelled.is_set():
                    self._recording.cancel()
                await asyncio.wait([self._recording])
                if not self._recording.cancelled() and (error := self._recording.exception()) is not None:
                    log.error("internal error: the events of %s cannot be serialized", self.row.id, exc_info=error)
                    self._serialization_failed = True
            if not self._cancelled.is_set() and (checking := self._builder.start_check()) is not None:
                await checking
            if self._builder.is_agent and self._recording is None and not self._cancelled.is_set():
                await self._read_agent()
            try:
                events, response = self._build_final()
            except Exception:
                log.exception("internal error: the answer of %s cannot be serialized", self.row.id)
                self._serialization_failed = True
                events, response = self._build_final()
            response = await self._append_to_conversation(response)
            await self._store_final(response)
            self.final = response
            if self._recording is not None:
                self._add_events([*events, self._builder.build_last_event(response)])
            self._notify_readers()
            self.finished.set()
        finally:
            for task in (cancelled, ended, self._recording):
                if task is not None:
                    task.cancel()
        if not self._scope.is_named:
            self._services.sessions.delete(self._scope.session)

    async def _read_agent(self) -> None:
        """Build the items of an agent that has ended, and whose events no client has streamed."""
        try:
            async for _ in agent_events(self._builder, self._call, self._model, retries=True):
                pass
        except Exception:
            log.exception("internal error: the answers of %s cannot be serialized", self.row.id)
            self._serialization_failed = True

    def _build_final(self) -> tuple[list[Event], Response]:
        """Return the events before the last one, and the final response."""
        call, builder = self._call, self._builder
        if self._cancelled.is_set() or call.state is CallState.CANCELLED:
            events = builder.interrupt()
            return events, builder.build_response("cancelled")
        if call.state is not CallState.DONE or self._serialization_failed:
            error = FailedCall(call.failure or Failure("internal_error", "the answer cannot be serialized"))
            events = builder.interrupt()
            return events, builder.fail(error)
        if self._recording is None and not builder.is_agent:
            builder.grow(call.output.value or "", call.output.pieces)
        events = [*builder.open(), *builder.close()]
        return events, builder.finish()

    async def _append_to_conversation(self, response: Response) -> Response:
        """Add the response to its conversation. Return the response, which says whether it was added."""
        id = self._builder.conversation
        if id is None or response.status not in ("completed", "incomplete"):
            return response
        while True:
            try:
                store = self._services.response_store
                is_added = await append_response(store, self.row.tenant, id, self.row.input, response)
            except ResponseStoreError:
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                return response if is_added else msgspec.structs.replace(response, conversation=None)

    async def _store_final(self, response: Response) -> None:
        row = dataclasses.replace(self.row, answer=encode_json(response), resume_data=b"", call_session=None)
        while True:
            try:
                await self._services.response_store.complete(row)  # or it was deleted meanwhile
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
        self._cancelled.set()

    async def follow(self, request: web.Request, after: int) -> web.StreamResponse:
        """Stream the events after the event numbered `after`, up to the last.

        If the numbers of the events are lost, stream only the last event; or, if `after` is -1, all events as if the
        response were generated now.
        """
        stream, session = EventStream(request), self._scope.session
        if stream.is_empty:
            return await stream.end(done=False)
        scheduler, output = self._services.scheduler, self._call.output
        with subscribed(scheduler, [output], session=session):
            if not self.record_events() or (self._is_resumed and after >= 0):
                await stream.with_heartbeats(self.finished.wait)
                events = replay_events(self.response) if after < 0 else last_event_of(self.response, after + 1)
                return await stream.end(events, done=False)
            position = after + 1
            while True:
                changed = self._changed
                if position < len(self.events):
                    events, position = b"".join(self.events[position:]), len(self.events)
                    if self.final is not None:
                        return await stream.end(events, done=False)
                    await stream.write(events)
                elif self.final is not None:
                    return await stream.end(b"", done=False)
                else:
                    await stream.with_heartbeats(changed.wait)

    def record_events(self) -> bool:
        """Begin to record the events, unless the call has ended. Return whether they are recorded."""
        if self._recording is None and not self._call_ended:
            self._add_events(self._builder.queue())
            self._recording = asyncio.create_task(self._record(), name=f"events of {self.row.id}")
        return self._recording is not None

    async def _record(self) -> None:
        if self._builder.is_agent:
            async for events in agent_events(self._builder, self._call, self._model, retries=True):
                self._add_events(events)
            return
        with self._scope.session.read(self._call.output) as reader:
            while not reader.is_exhausted:
                try:
                    pieces = await reader.next_pieces()
                except GraphError:  # the exposure cannot be stored now, so the text must not be sent
                    await asyncio.sleep(_RETRY_SECONDS)
                    continue
                if pieces:
                    text = "".join([piece.text for piece in pieces])
                    self._add_events([*self._builder.open(), *self._builder.grow(text, pieces)])

    def _add_events(self, events: Iterable[Event]) -> None:
        self.events += [encode_events([event]) for event in events]
        self._notify_readers()

    def _notify_readers(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class Background:
    """Owner of the background responses that are in progress, and of the events of those that ended recently."""

    def __init__(self, services: Services, bytes_limit: SharedLimit) -> None:
        """`bytes_limit`: limit on the bytes of responses in progress; each counts until it has ended."""
        self._services = services
        self._bytes_limit = bytes_limit
        self._in_progress: dict[tuple[str, str], BackgroundResponse] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._recent: OrderedDict[tuple[str, str], Sequence[bytes]] = OrderedDict()
        """Events of responses that have ended, oldest first."""
        self._recent_bytes = 0
        self.has_resumed = False
        """Whether all responses that this process resumes are known. Others that are unfinished are lost."""

    def find(self, tenant: str, id: str) -> BackgroundResponse | None:
        """Return the response while it is in progress."""
        return self._in_progress.get((tenant, id))

    def recent_events(self, tenant: str, id: str) -> Sequence[bytes]:
        """Return the events of a response that has ended recently, if a client has streamed it."""
        return self._recent.get((tenant, id), ())

    async def start(
        self,
        raw: bytes,
        body: ResponseRequest,
        target: Target,
        turn: Turn,
        spec: CallSpec,
        facts: RequestFacts | None,
        setup: McpSetup | None = None,
    ) -> BackgroundResponse:
        """Start the call. `raw`: the body of the request. `setup`: its MCP servers, if it has any. Once this returns,
        the response will be completed, even after a crash.

        Raises GraphError or RequestError; then nothing has changed.
        """
        model, scope = target.model, target.scope
        id, tenant = new_response_id(), scope.session.tenant
        await self._services.accounts.make_room(tenant)
        if not self._bytes_limit.has_room(tenant, 2 * len(raw)):  # the body is stored twice: as input and to resume
            size = self._bytes_limit.amount(tenant)
            message = f"responses in progress of this API key have {size} bytes, the current maximum; try again later"
            raise RequestError(429, message, code="overloaded")
        if not scope.is_named:
            own = self._services.sessions.create(tenant, id, metadata={_RESPONSE: id})
            scope = Scope(own, is_named=False, is_deferred=False)
        try:
            addition = scope.session.add_all([dataclasses.replace(spec, deferred=True)])
        except GraphError:
            self._discard_session(scope)
            raise
        (call,) = addition.calls
        join_program(target, addition.calls, facts)
        checker = self._create_checker(body, model, tenant)
        builder = ResponseBuilder(body, model, scope, call, id, checker=checker, is_stored=True, setup=setup)
        response = builder.build_response("queued")
        kept = raw if setup is None else without_secrets(raw)
        resume_data = _ResumeData(msgspec.Raw(kept), call.id, response.created_at, scope.is_named, setup)
        row = turn.to_row(response, raw, slots=spec.parts is not None)
        row = dataclasses.replace(row, resume_data=encode_json(resume_data), call_session=scope.session.id)
        running = BackgroundResponse(self._services, row, builder, call, scope, model)
        self._add(running)
        # Submission is atomic: a disconnect must not leave a partly submitted response.
        await asyncio.shield(self._spawn(self._submit(running, addition, turn, scope, body.is_streamed)))
        return running

    async def _submit(
        self, running: BackgroundResponse, addition: Addition, turn: Turn, scope: Scope, streamed: bool
    ) -> None:
        response_store, scheduler, session = self._services.response_store, self._services.scheduler, scope.session
        try:
            await response_store.add(running.row, turn.previous_turns)
        except ResponseStoreError as error:
            failure = Failure(error.code, str(error))
            session.set_values(addition, failure)
            for call in addition.calls:
                scheduler.cancel(call, failure)
            self._remove(running)
            self._discard_session(scope)
            raise
        self._spawn(self._run(running))
        if streamed:
            running.record_events()
        try:
            await scheduler.start(session, addition, promised=True)
        except GraphError:
            running.cancel()
            raise

    def _create_checker(self, body: ResponseRequest, model: ServedModel, tenant: str) -> AnswerChecker | None:
        parser_factory = tool_call_parser_factory(body.chat, model)
        return answer_checker_of(
            body.chat, parser_factory, self._services.schema_check_gate, tenant, checks_inputs=model.is_passthrough
        )

    def _add(self, running: BackgroundResponse) -> None:
        self._in_progress[running.row.tenant, running.row.id] = running
        self._bytes_limit.add(running.row.tenant, running.row.size)

    def _remove(self, running: BackgroundResponse) -> None:
        del self._in_progress[running.row.tenant, running.row.id]
        self._bytes_limit.remove(running.row.tenant, running.row.size)

    def _discard_session(self, scope: Scope) -> None:
        if not scope.is_named:
            self._services.sessions.delete(scope.session)

    async def _run(self, running: BackgroundResponse) -> None:
        key = (running.row.tenant, running.row.id)
        try:
            await running.run()
        finally:
            self._remove(running)
            if running.events:
                self._recent[key] = running.events
                self._recent_bytes += sum(map(len, running.events))
        while self._recent_bytes > _RECENT_BYTES:
            _, events = self._recent.popitem(last=False)
            self._recent_bytes -= sum(map(len, events))

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)
        return task

    def _on_task_done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, GraphError):
            log.error("internal error: a response in the background failed", exc_info=error)

    # after a restart, and if a session was taken over from another gateway

    async def resume_all(self, restored: Sequence[Session]) -> None:
        """Resume all responses that were in progress when the process before this one ended.

        `restored`: the restored sessions; their calls are already resumed. Raises ResponseStoreError.
        """
        rows = await self._services.response_store.list_unfinished()
        for row in rows:
            await self._resume_one(row)
        needed = {(row.tenant, row.call_session) for row in rows}
        for session in restored:
            if (session.tenant, session.id) not in needed:
                self._end_if_own(session)
        self.has_resumed = True

    def resume(self, session: Session) -> None:
        """Resume the responses in a session that another gateway had."""
        self._spawn(self._resume(session))

    async def _resume(self, session: Session) -> None:
        while True:
            try:
                rows = await self._services.response_store.list_unfinished(session.tenant, session.id)
                for row in rows:
                    await self._resume_one(row)
            except ResponseStoreError as error:
                log.warning("the responses of session %s cannot be resumed yet; trying again: %s", session.id, error)
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
        resume_data = _decode_resume_data(row.resume_data)
        sessions, key = self._services.sessions, (row.tenant, row.call_session or "")
        session = sessions.get(*key) if sessions.holds(*key) else None
        call = None if session is None else session.calls.get(resume_data.call)
        if session is None or call is None:
            await self.fail_lost(row)
            return
        scope = Scope(session, resume_data.named, is_deferred=False)
        try:
            body = validate(_decode_body(resume_data.body), ResponseRequest)
            body = await self._with_earlier_tools(row, body, scope)
            model = await self._services.models.get(body.model)
        except RequestError as error:
            self._services.scheduler.cancel(call, Failure("interrupted", str(error), call.id))
            await self.fail_lost(row, str(error))
            return
        if (row.tenant, row.id) in self._in_progress:  # it has just started
            return
        builder = ResponseBuilder(
            body,
            model,
            scope,
            call,
            row.id,
            checker=self._create_checker(body, model, row.tenant),
            is_stored=True,
            created=resume_data.created,
            setup=resume_data.setup,
        )
        running = BackgroundResponse(self._services, row, builder, call, scope, model, is_resumed=True)
        self._add(running)
        self._spawn(self._run(running))

    async def _with_earlier_tools(self, row: StoredResponse, body: ResponseRequest, scope: Scope) -> ResponseRequest:
        """Return the request with the tools that the turns before it have added, as far as they are still stored.
        Raises ResponseStoreError."""
        if not body.continues:
            return body
        try:
            turn = await Turn.load(self._services.response_store, row.tenant, body, scope)
            await asyncio.to_thread(lambda: turn.messages_with_paths)
            return body.with_earlier_tools(turn.earlier_tools)
        except ResponseStoreError:
            raise
        except (RequestError, GraphError):
            return body

    async def fail_lost(self, row: StoredResponse, reason: str = "the server ended before the call was stored") -> None:
        """Store that a response has failed because its call is lost. Raises ResponseStoreError."""
        error = error_of(FailedCall(Failure("interrupted", reason)))
        response = msgspec.structs.replace(stored_response(row), status="failed", error=error)
        failed = dataclasses.replace(row, answer=encode_json(response), resume_data=b"", call_session=None)
        await self._services.response_store.complete(failed)  # unless it has ended meanwhile

    async def close(self) -> None:
        """Stop without ending the responses: another process resumes them."""
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


BACKGROUND = web.AppKey("background", Background)
