"""Responses that are made while nobody waits: asked for again by their ids, watched, cancelled, and gone on with after
a crash.

Such a call is promised like a deferred one. Where its client named no session it has one of its own, called as the
response is, until it has ended.
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
from gateway.api.openai.tools import call_readers
from gateway.api.responses.builder import Event, ResponseBuilder, again, encode_events, error_of, last_of, response_of
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
from gateway.http.json_body import check, encode_json
from gateway.http.sse import EventStream
from gateway.prompts.served_models import ServedModel
from gateway.responses import ResponseStoreError, StoredResponse

log = logging.getLogger("myna.responses")

_LATE_BYTES = 16 << 20
"""Of events of responses that have ended, for clients that lost their connection at the end."""
_RESPONSE = "response"
"""What the metadata of a response's own session tell: its id."""
_AGAIN_SECONDS = 1.0
"""Between two attempts to keep what has ended."""


class _Begun(msgspec.Struct):
    """What is needed to go on with a response: its request's body, its call, when it was asked for, and whether its
    client named the session."""

    body: msgspec.Raw
    call: str
    created: int
    named: bool


_begun = msgspec.json.Decoder(_Begun).decode
_content = msgspec.json.Decoder().decode


class Work:
    """Owner of a response that is made while nobody waits."""

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
        """`row`: as it is kept while it is unfinished. `resumed`: events of it have had numbers that nobody knows."""
        self.row = row
        self.events: list[bytes] = []
        """By their numbers, once somebody watches."""
        self.final: Response | None = None
        """How it ended, once that is kept."""
        self.finished = asyncio.Event()
        """Whether it has."""
        self._services = services
        self._builder = builder
        self._call = call
        self._scope = scope
        self._resumed = resumed
        self._telling: asyncio.Task[None] | None = None
        self._stopped = asyncio.Event()
        """Whether a client has cancelled it."""
        self._over = False
        """Whether nothing more will happen, but that it is kept."""
        self._broken = False
        """Whether the answer cannot be told to its end."""
        self._changed = asyncio.Event()
        """Set, and replaced, whenever there are more events."""

    @property
    def response(self) -> Response:
        """As it stands."""
        if self.final is not None:
            return self.final
        waits = self._call.state in (CallState.WAITING, CallState.QUEUED)
        return self._builder.response("queued" if waits else "in_progress")

    async def run(self) -> None:
        """Waits for the answer, and keeps it."""
        stopped = asyncio.ensure_future(self._stopped.wait())
        ended = asyncio.ensure_future(self._call.output.wait_final())
        try:
            await asyncio.wait((stopped, ended), return_when=asyncio.FIRST_COMPLETED)
            self._over = True
            if self._telling is not None:
                if self._stopped.is_set():
                    self._telling.cancel()
                await asyncio.wait([self._telling])
                if not self._telling.cancelled() and (error := self._telling.exception()) is not None:
                    log.error("the events of %s cannot be told, for a reason of our own", self.row.id, exc_info=error)
                    self._broken = True
            if not self._stopped.is_set() and (checking := self._builder.check()) is not None:
                await checking
            try:
                events, response = self._ending()
            except Exception:
                log.exception("the answer of %s cannot be told, for a reason of our own", self.row.id)
                self._broken = True
                events, response = self._ending()
            await self._keep(response)
            self.final = response
            if self._telling is not None:
                self._happened([*events, self._builder.last_event(response)])
            self._wake()
            self.finished.set()
        finally:
            for task in (stopped, ended, self._telling):
                if task is not None:
                    task.cancel()
        if not self._scope.named:
            self._services.sessions.delete(self._scope.session)

    def _ending(self) -> tuple[list[Event], Response]:
        """The last events but one, and the response as it ended."""
        call, builder = self._call, self._builder
        if self._stopped.is_set() or call.state is CallState.CANCELLED:
            events = builder.interrupt()
            return events, builder.response("cancelled")
        if call.state is not CallState.DONE or self._broken:
            error = FailedCall(call.failure or Failure("internal_error", "the answer cannot be told"))
            events = builder.interrupt()
            return events, builder.failed(error)
        if self._telling is None:
            builder.grow(call.output.value or "", call.output.pieces)
        events = [*builder.open(), *builder.close()]
        return events, builder.ended()

    async def _keep(self, response: Response) -> None:
        row = dataclasses.replace(self.row, answer=encode_json(response), begun=b"", runs_in=None)
        while True:
            try:
                await self._services.archive.end(row)  # or it was deleted meanwhile
            except ResponseStoreError:
                await asyncio.sleep(_AGAIN_SECONDS)
            else:
                return

    def cancel(self) -> None:
        """Nobody wants it any more. Its call goes on if others read what it makes."""
        session = self._scope.session
        for variable in self._call.outputs:
            if session.variables.get(variable.name) is variable:
                session.delete(variable.name)
            self._services.scheduler.release(variable)
        self._stopped.set()

    async def follow(self, request: web.Request, after: int) -> web.StreamResponse:
        """The events behind the one numbered `after`, and those that come, to the last. Where nobody knows their
        numbers any more, only the last of them, or if there were none before, all as if it were made now."""
        stream, session = EventStream(request), self._scope.session
        scheduler, output = self._services.scheduler, self._call.output
        with subscribed(scheduler, [output], session=session):
            if not self.tell() or (self._resumed and after >= 0):
                await stream.patiently(self.finished.wait)
                events = again(self.response) if after < 0 else last_of(self.response, after + 1)
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
                    await stream.patiently(changed.wait)

    def tell(self) -> bool:
        """Begins to note the events, unless it is too late for that; whether they are noted."""
        if self._telling is None and not self._over:
            self._happened(self._builder.queue())
            self._telling = asyncio.create_task(self._note(), name=f"events of {self.row.id}")
        return self._telling is not None

    async def _note(self) -> None:
        with self._scope.session.read(self._call.output) as reader:
            while not reader.ended:
                try:
                    pieces = await reader.more()
                except GraphError:  # that it is shown cannot be kept now, and so it is not shown
                    await asyncio.sleep(_AGAIN_SECONDS)
                    continue
                if pieces:
                    text = "".join([piece.text for piece in pieces])
                    self._happened([*self._builder.open(), *self._builder.grow(text, pieces)])

    def _happened(self, events: Iterable[Event]) -> None:
        self.events += [encode_events([event]) for event in events]
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class Background:
    """Owner of all of them."""

    def __init__(self, services: Services, held: SharedLimit) -> None:
        """`held`: the bytes of responses in progress; they count until the responses have ended."""
        self._services = services
        self._held = held
        self._works: dict[tuple[str, str], Work] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._late: OrderedDict[tuple[str, str], Sequence[bytes]] = OrderedDict()
        """Events of responses that have ended."""
        self._late_bytes = 0
        self.resumed = False
        """Whether all that was begun before the start is here, as far as it is ours: what is not is lost."""

    def find(self, tenant: str, id: str) -> Work | None:
        """The response of that id, while it is made."""
        return self._works.get((tenant, id))

    def late(self, tenant: str, id: str) -> Sequence[bytes]:
        """The events of one that has ended not long ago, if somebody watched it; else nothing."""
        return self._late.get((tenant, id), ())

    async def begin(
        self, raw: bytes, body: ResponseRequest, model: ServedModel, scope: Scope, turn: Turn, spec: CallSpec
    ) -> Work:
        """Starts the call. `raw`: the request's body. Once this returns it will be made, whatever happens. Raises
        GraphError or RequestError, and then nothing of it is done."""
        id, tenant = new_response_id(), scope.session.tenant
        if not self._held.has_room(tenant, 2 * len(raw)):  # the body is stored once to be read and once to be resumed
            message = f"responses in progress of this key hold {self._held.held(tenant)} bytes, the current maximum"
            raise RequestError(429, message, code="overloaded")
        if not scope.named:
            own = self._services.sessions.create(tenant, id, metadata={_RESPONSE: id})
            scope = Scope(own, named=False, deferred=False)
        try:
            addition = scope.session.add_all([dataclasses.replace(spec, deferred=True)])
        except GraphError:
            self._give_up(scope)
            raise
        (call,) = addition.calls
        builder = ResponseBuilder(body, model, scope, call, id, checks=self._checks(body, model, tenant), keeps=True)
        response = builder.response("queued")
        begun = _Begun(msgspec.Raw(raw), call.id, response.created_at, scope.named)
        row = turn.kept(response, raw, slots=spec.parts is not None)
        row = dataclasses.replace(row, begun=encode_json(begun), runs_in=scope.session.id)
        work = Work(self._services, row, builder, call, scope)
        self._enter(work)
        # a client that leaves now must not leave half of it
        await asyncio.shield(self._own(self._start(work, addition, turn, scope, body.streamed)))
        return work

    async def _start(self, work: Work, addition: Addition, turn: Turn, scope: Scope, streamed: bool) -> None:
        archive, scheduler, session = self._services.archive, self._services.scheduler, scope.session
        try:
            await archive.keep(work.row, turn.earlier)
        except ResponseStoreError as error:
            failure = Failure(error.code, str(error))
            session.settle(addition, failure)
            for call in addition.calls:
                scheduler.cancel(call, failure)
            self._leave(work)
            self._give_up(scope)
            raise
        self._own(self._run(work))
        if streamed:
            work.tell()
        try:
            await scheduler.start(session, addition, promised=True)
        except GraphError:
            work.cancel()
            raise

    def _checks(self, body: ResponseRequest, model: ServedModel, tenant: str) -> AnswerChecks | None:
        return checks_of(body.chat, call_readers(body.chat, model), self._services.form_checks, tenant)

    def _enter(self, work: Work) -> None:
        self._works[work.row.tenant, work.row.id] = work
        self._held.add(work.row.tenant, work.row.size)

    def _leave(self, work: Work) -> None:
        del self._works[work.row.tenant, work.row.id]
        self._held.remove(work.row.tenant, work.row.size)

    def _give_up(self, scope: Scope) -> None:
        if not scope.named:
            self._services.sessions.delete(scope.session)

    async def _run(self, work: Work) -> None:
        key = (work.row.tenant, work.row.id)
        try:
            await work.run()
        finally:
            self._leave(work)
            if work.events:
                self._late[key] = work.events
                self._late_bytes += sum(map(len, work.events))
        while self._late_bytes > _LATE_BYTES:
            _, events = self._late.popitem(last=False)
            self._late_bytes -= sum(map(len, events))

    def _own(self, work: Any) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, GraphError):
            log.error("a response that nobody waits for failed for a reason of our own", exc_info=error)

    # after a restart, and where a session comes from another gateway

    async def resume_all(self, restored: Sequence[Session]) -> None:
        """Goes on with all that was begun before the start. `restored`: the sessions that there were then; their calls
        are begun anew. Raises ResponseStoreError."""
        rows = await self._services.archive.unfinished()
        for row in rows:
            await self._take_up(row)
        wanted = {(row.tenant, row.runs_in) for row in rows}
        for session in restored:
            if (session.tenant, session.id) not in wanted:
                self._end_if_own(session)
        self.resumed = True

    def resume(self, session: Session) -> None:
        """The same for what runs in a session that another gateway had."""
        self._own(self._resume(session))

    async def _resume(self, session: Session) -> None:
        while True:
            try:
                rows = await self._services.archive.unfinished(session.tenant, session.id)
                for row in rows:
                    await self._take_up(row)
            except ResponseStoreError as error:
                log.warning("what session %s was to answer is asked for again: %s", session.id, error)
                await asyncio.sleep(_AGAIN_SECONDS)
            else:
                break
        if not rows:
            self._end_if_own(session)

    def _end_if_own(self, session: Session) -> None:
        """A session that was a response's own, which ended, goes as well."""
        if session.metadata.get(_RESPONSE) == session.id:
            self._services.sessions.delete(session)

    async def _take_up(self, row: StoredResponse) -> None:
        begun = _begun(row.begun)
        sessions = self._services.sessions
        session = sessions.get(row.tenant, row.runs_in or "") if sessions.holds(row.tenant, row.runs_in or "") else None
        call = None if session is None else session.calls.get(begun.call)
        if session is None or call is None:
            await self.lose(row)
            return
        try:
            body = check(_content(begun.body), ResponseRequest)
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
        work = Work(self._services, row, builder, call, scope, resumed=True)
        self._enter(work)
        self._own(self._run(work))

    async def lose(self, row: StoredResponse, why: str = "the server ended before this was begun") -> None:
        """Ends one that cannot be made any more: its call is nowhere. Raises ResponseStoreError."""
        error = error_of(FailedCall(Failure("interrupted", why)))
        response = msgspec.structs.replace(response_of(row), status="failed", error=error)
        lost = dataclasses.replace(row, answer=encode_json(response), begun=b"", runs_in=None)
        await self._services.archive.end(lost)  # unless it has ended meanwhile

    async def close(self) -> None:
        """Lets go of all of them: they go on after the next start, or elsewhere."""
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


BACKGROUND = web.AppKey("background", Background)
