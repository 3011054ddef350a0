"""One coroutine a call: fill, wait for a variable, fill on, generate, publish, free."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from gateway.engines.protocol import ContextRefused, Engine, EngineContext, EngineFailure, EngineLost, Engines, NoEngine
from gateway.graph.call import Call, CallState, Objective, Rendering, Usage
from gateway.graph.errors import Failure, GraphError
from gateway.graph.limits import SharedLimit
from gateway.graph.session import Addition, Session
from gateway.graph.variable import Piece, ProducerRestarted, Reader, Variable, VariableState
from gateway.runtime.fair_gate import FairGate
from gateway.scheduler.attempt import CallAttempt, UnsettledTokens
from gateway.scheduler.cost_model import CostModel
from gateway.scheduler.inputs import CallFailed, InputReader, derive, upstream
from gateway.scheduler.isolation import Isolation
from gateway.scheduler.objective import sources
from gateway.scheduler.placement import Placement, place
from gateway.scheduler.priority import Priorities

log = logging.getLogger("myna.scheduler")

_ATTEMPTS = 3
"""Maximum number of attempts at a call, if engines refuse it temporarily or fail for reasons unrelated to it."""
_BEYOND = 2
"""Factor: running graphs of one tenant may grow to this many times the bound on unfinished calls."""
_SOON = 1.0
"""Seconds for which an engine is waited for where another model could answer."""
_SLICE_SECONDS = 0.005
"""Time for which calls are started without a turn for others, in seconds."""
_AT_ONCE = 20
"""Calls of one addition that are started without a turn for others."""


class Overloaded(Exception):
    """As many calls as the queue bound allows are unfinished. `retry_after` is in seconds."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Stopping(Exception):
    """The server is about to end and takes no new work."""


class Scheduler:
    """Owner of the calls' coroutines and their contexts."""

    def __init__(
        self,
        engines: Engines,
        max_calls: int,
        observe: Callable[[Call], None] = lambda call: None,
        *,
        several_tenants: bool = False,
        priorities: Priorities | None = None,
        fill_ahead: bool = True,
        place: Placement = place,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`max_calls`: maximum number of unfinished calls; with `several_tenants`, no tenant alone may have all of
        them. `observe` is called with every call that ends. `fill_ahead`: whether prompts are filled before all their
        values are there. `priorities` orders the calls, `place` chooses engines; `now` is the priorities' clock, in
        seconds."""
        self._engines = engines
        self._unfinished = SharedLimit(max_calls, several=several_tenants)
        self._observe = observe
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._calls: dict[str, Call] = {}
        """The calls of `_tasks`, by id."""
        self._starting = FairGate(rests=False)
        """Passed by each slice of a large addition."""
        self._to_submit: set[str] = set()
        """Ids of calls that are about to be submitted: those of large additions are submitted in pieces."""
        self._without_task: dict[str, Call] = {}
        """Unfinished calls that had no coroutine at the last `end_stuck`. Some of them may get one soon."""
        self._contexts: dict[str, EngineContext] = {}
        self._priorities = priorities or Priorities(CostModel())
        self._informing = False
        """Whether `_inform_engines` is about to run."""
        self._place = place
        self._now = now
        self._fill_ahead = fill_ahead
        self._owned: set[asyncio.Task[None]] = set()
        self._parsing = FairGate()
        """Held while a large value is parsed; see InputReader."""
        self._isolation = Isolation()
        self._at_work: dict[str, Call] = {}
        """Calls that have a context, by id."""
        self._stopping = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def unfinished(self) -> int:
        """Calls that were submitted and have not ended."""
        return len(self._tasks)

    @property
    def stopping(self) -> bool:
        """Whether the server is stopping and accepts no new work."""
        return self._stopping

    def admit(self, tenant: str, *, continues: bool) -> None:
        """Raise Overloaded, or Stopping, if new work of the tenant cannot be accepted.

        `continues`: whether the work belongs to a running graph, which is refused only far beyond the bound.
        """
        if self._stopping:
            raise Stopping("the server is stopping and takes no new work")
        held = self._unfinished.held(tenant)
        if held >= _BEYOND * self._unfinished.total if continues else not self._unfinished.has_room(tenant):
            raise Overloaded(f"{held} calls of this key are unfinished, the current maximum; try again later", 1)

    def rank(self, call: Call) -> float:
        """The call's place in the order of waiting work; lower goes first."""
        return self._priorities.rank(call)

    def stop_admitting(self) -> None:
        """From here on `admit` refuses."""
        self._stopping = True

    async def start(self, session: Session, addition: Addition, *, promised: bool = False) -> None:
        """Starts what was added to a session. Returns when its values, and all of it if `promised`, are kept.

        Raises GraphError if that cannot be: then none of it is done.
        """
        few = len(addition.calls) <= _AT_ONCE
        if few:
            for call in addition.calls:
                self.submit(call)
            if not addition.values:
                if promised:
                    await self._settle(session, addition)
                return
        # begun is done: a client that leaves now must not leave half of it
        begin = self._settle if few else self._begin
        task = asyncio.get_running_loop().create_task(begin(session, addition))
        self._owned.add(task)
        self._idle.clear()
        task.add_done_callback(self._begun)
        await asyncio.shield(task)

    def _begun(self, task: asyncio.Task[None]) -> None:
        self._owned.discard(task)
        if not task.cancelled():
            task.exception()  # raised for the client, who may have gone
        self._rest()

    async def _begin(self, session: Session, addition: Addition) -> None:
        """Starts many calls, and lets everybody else have their turns meanwhile."""
        ids = {call.id for call in addition.calls}
        self._to_submit |= ids
        try:
            rest = deque(addition.calls)
            while rest:
                async with self._starting.turn(session.tenant):
                    began = time.monotonic()
                    for _ in range(min(_AT_ONCE, len(rest))):
                        self.submit(rest.popleft())
                        if time.monotonic() - began > _SLICE_SECONDS:
                            break
                await asyncio.sleep(0)
        finally:
            self._to_submit -= ids
        await self._settle(session, addition)

    async def _settle(self, session: Session, addition: Addition) -> None:
        try:
            await session.flushed()
        except GraphError as error:
            failure = Failure(error.code, str(error))
            session.settle(addition, failure)
            for variable, _ in addition.values:
                self._fail_readers(variable)
            for call in addition.calls:
                self.cancel(call, failure)
            raise
        session.settle(addition)

    def resume(self, session: Session) -> None:
        """Begins the unfinished calls of a session that outlived its process anew, as far as they are wanted."""
        unfinished = [call for call in session.calls.values() if not call.state.final]
        for call in unfinished:
            self.submit(call)
        for call in unfinished:
            failed = next((source for source in call.inputs.values() if source.failure is not None), None)
            if failed is not None:
                self._end(call, CallState.FAILED, upstream(failed))
        for call in unfinished:
            self._release(call)

    def submit(self, call: Call) -> None:
        """Starts a call's coroutine; its results appear in the variables that it makes."""
        if call.state.final:  # cancelled while others were started
            self._release_sources(call)
            return
        task = asyncio.get_running_loop().create_task(self._run(call), name=call.id)
        self._enter(call, task)
        task.add_done_callback(lambda _: self._ended(call))

    async def perform(self, call: Call) -> None:
        """Runs a call that nobody else can read, in the coroutine of whoever waits for it: what plain requests are. A
        client that leaves ends it. Its results appear in the variables that it makes, before this returns."""
        task = asyncio.current_task()
        assert task is not None
        self._enter(call, task)
        try:
            await self._run(call)
        finally:  # in the next turn: the answer is sent first
            asyncio.get_running_loop().call_soon(self._ended, call)

    def _enter(self, call: Call, task: "asyncio.Task[None]") -> None:
        self._priorities.add(call, self._now())
        self._priorities_changed()
        self._idle.clear()
        self._tasks[call.id], self._calls[call.id] = task, call
        self._unfinished.add(call.session.tenant)

    def _ended(self, call: Call) -> None:
        del self._tasks[call.id], self._calls[call.id]
        self._unfinished.remove(call.session.tenant)
        if not call.state.final:  # its task was cancelled before it first ran
            self._end(call, CallState.CANCELLED, Failure("cancelled", "the call was cancelled", call.id))
        self._priorities.end(call)  # not before: whoever waits for the answer has it first
        if call.state is CallState.DONE:
            self._priorities.estimates.learn(call)
        self._release_sources(call)
        self._rest()

    def _release_sources(self, call: Call) -> None:
        """A call that failed may leave some that nobody else needs."""
        for source in sources(call):
            self._release(source)

    def _rest(self) -> None:
        if not self._tasks and not self._owned:
            self._idle.set()

    def cancel(self, call: Call, failure: Failure) -> None:
        """Stops a call; its context is freed at once."""
        self._end(call, CallState.CANCELLED, failure)

    def subscribe(
        self, variable: Variable, objective: Objective = Objective.LATENCY, *, interactive: bool = True
    ) -> None:
        """Somebody waits for the variable now: what it needs may rank higher. `interactive`: and for nothing else with
        it; of several, only the last to end counts. Pair with `unsubscribe`."""
        variable.subscribers += 1
        variable.latency_subscribers += objective is Objective.LATENCY
        variable.interactive_subscribers += interactive and objective is Objective.LATENCY
        self._priorities.wanted(variable, objective, self._now())
        self._priorities_changed()

    def unsubscribe(
        self, variable: Variable, objective: Objective = Objective.LATENCY, *, interactive: bool = True
    ) -> None:
        """The reader has what it wanted or has gone; what nobody else needs is cancelled."""
        variable.subscribers -= 1
        variable.latency_subscribers -= objective is Objective.LATENCY
        variable.interactive_subscribers -= interactive and objective is Objective.LATENCY
        self._priorities.left(variable)
        self.release(variable)
        self._priorities_changed()

    def release(self, variable: Variable) -> None:
        """Cancels the variable's producer and its ancestors as far as nobody can read them any more.

        Without a producer, whoever reads a variable that will not be is told.
        """
        if variable.producer is not None:
            self._release(variable.producer)
        elif variable.failure is not None:
            self._fail_readers(variable)

    def _release(self, call: Call) -> None:
        stack = [call]
        while stack:
            at = stack.pop()
            if at.state.final or at.is_needed:
                continue
            self.cancel(at, Failure("cancelled", "nobody waits for this any more", at.id))
            stack.extend(sources(at))

    def _priorities_changed(self) -> None:
        """Inform the engines in the next turn of the loop: once, however many calls were added in this one."""
        if not self._informing:
            self._informing = True
            asyncio.get_running_loop().call_soon(self._inform_engines)

    def _inform_engines(self) -> None:
        """Send the engines the changed urgency of the calls that they work on."""
        self._informing = False
        for call in self._priorities.changed():
            context = self._contexts.get(call.id)
            if context is not None:
                context.rerank(self._priorities.urgency(call))

    async def drained(self) -> None:
        """Returns once no call is unfinished."""
        await self._idle.wait()

    async def close(self) -> None:
        """Cancels what runs and waits until it has ended."""
        tasks = [*self._tasks.values(), *self._owned]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # the coroutine

    async def _run(self, call: Call) -> None:
        try:
            for source in call.inputs.values():
                if source.failure is not None:
                    raise CallFailed(upstream(source))
            await (self._run_somewhere(call) if call.spec.model else derive(call, self._parsing))
            await self._publish(call)
        except CallFailed as error:
            self._end(call, CallState.FAILED, error.failure)
        except EngineFailure as error:
            self._end(call, CallState.FAILED, Failure(error.code, str(error), call.id, _at_fault(call, error)))
        except GraphError as error:  # a value that could not be kept
            self._end(call, CallState.FAILED, Failure(error.code, str(error), call.id))
        except asyncio.CancelledError:
            self._end(call, CallState.CANCELLED, Failure("cancelled", "the call was cancelled", call.id))
            raise
        except Exception as error:
            log.exception("call %s failed for a reason of our own", call.id)
            self._end(call, CallState.FAILED, Failure("internal_error", f"internal error: {error!r}", call.id))

    async def _publish(self, call: Call) -> None:
        """Ends a call whose output is whole; its value is kept before anybody reads it as ready."""
        if call.session.id:
            for variable in call.outputs:
                if not variable.state.final:
                    call.session.assigning(variable, variable.text)
            await call.session.flushed()
        self._end(call, CallState.DONE, None)

    async def _run_somewhere(self, call: Call) -> None:
        """Runs the call on its model, or on the next one in its place if no engine of that does it, as long as nobody
        was shown a token."""
        *others, last = call.spec.renderings
        for rendering in others:
            try:
                await self._attempts(call, rendering, wait=False)
                return
            except ContextRefused:
                raise
            except EngineFailure as error:
                if not _start_over(call):
                    raise
                log.warning("call %s goes on to the next model: %s", call.id, error)
        await self._attempts(call, last, wait=True)

    async def _attempts(self, call: Call, rendering: Rendering, *, wait: bool) -> None:
        """Runs the call, and again if its engine dies under it before anybody was shown a token. `wait`: also if that
        takes a while.

        The call may have killed the engine. So it runs again only once, and alone: see `isolation`.
        """
        attempt, patient = 1, False
        suspect, lost = False, None
        while True:
            try:
                if suspect and lost is not None:
                    await self._attempt_alone(call, rendering, lost)
                else:
                    await self._attempt(call, rendering, patient=patient, wait=wait, lost=lost)
                return
            except EngineLost as error:
                if suspect and error.suspect:
                    message = f"{error}; that was its second attempt, and the engine worked on nothing else"
                    # CallFailed, so that no fallback model's engine runs the call
                    raise CallFailed(Failure(error.code, message, call.id)) from error
                if attempt == _ATTEMPTS:
                    message = f"{error}; that was attempt {attempt} of {_ATTEMPTS}"
                    raise type(error)(message, pause=error.pause) from error
                if (error.pause > _SOON and not wait) or not _start_over(call):
                    raise
                attempt += 1
                suspect, lost = suspect or error.suspect, call.engine
                log.warning("call %s lost its engine and is run again: %s", call.id, error)
                if not suspect and not await self._elsewhere(rendering.model, lost):
                    await asyncio.sleep(error.pause)
            except (ProducerRestarted, UnsettledTokens) as error:
                if not _start_over(call):
                    message = "a value that this call had read in part is made anew"
                    raise CallFailed(Failure("engine_failed", message, call.id)) from error
                patient = patient or isinstance(error, UnsettledTokens)

    async def _elsewhere(self, model: str, lost: str | None) -> bool:
        """Whether an engine other than the lost one takes the model's work now."""
        try:
            return any(engine.name != lost for engine in await self._engines.serving(model, wait=False))
        except NoEngine:
            return False

    async def _attempt(self, call: Call, rendering: Rendering, *, patient: bool, wait: bool, lost: str | None) -> None:
        """`lost`: the engine that did not do it before."""
        if not self._fill_ahead:
            for source in call.inputs.values():
                await call.until_final(source)
        if not call.waiting_on:
            call.move(CallState.QUEUED)
        engines: Sequence[Engine] = ()
        while not engines:
            ready = await self._engines.serving(rendering.model, wait=wait)
            engines = await self._isolation.open(ready, passes=partial(self._is_at_work, call.session))
        if lost is not None:
            engines = [engine for engine in engines if engine.name != lost] or engines
        engine = engines[0]
        if len(engines) > 1:
            prefix_index, prefixes = self._priorities.prefix_index, self._priorities.prefixes(call)
            engine = self._place(call, engines, prefix_index.held(prefixes))
            prefix_index.given(prefixes, engine)
        await self._walk(call, rendering, engine, patient=patient, alone=False)

    async def _attempt_alone(self, call: Call, rendering: Rendering, lost: str) -> None:
        """Run a suspect on an engine without other work. Wait for all its inputs before: while it is reserved, the
        engine could not generate them."""
        for source in call.inputs.values():
            await call.until_final(source)
        serving = partial(self._engines.serving, rendering.model)
        async with self._isolation.alone(lost, serving) as engine:
            await self._walk(call, rendering, engine, patient=True, alone=True)

    def _is_at_work(self, session: Session, engine: Engine) -> bool:
        """Return whether calls of the session have contexts on the engine. They may wait for other calls of it."""
        return bool(session.id) and any(
            call.session is session and call.engine == engine.name for call in self._at_work.values()
        )

    async def _walk(self, call: Call, rendering: Rendering, engine: Engine, *, patient: bool, alone: bool) -> None:
        """Run one attempt on the engine. `interactive`: do not wait for an identical call instead."""
        call.engine, call.model = engine.name, rendering.model
        self._priorities.estimates.observe(engine)
        context = engine.open(call.scope, self._priorities.urgency(call))
        self._contexts[call.id], self._at_work[call.id] = context, call
        try:
            inputs = InputReader(call, self._parsing)
            prompt_read = self._priorities.prompt_read
            walk = CallAttempt(call, rendering, engine, context, inputs, patient=patient, prompt_read=prompt_read)
            identity = await walk.prepare()
            leader = None if alone else self._leader(call, identity)
            if leader is None:
                await walk.generate()
        finally:
            self._contexts.pop(call.id, None)
            self._at_work.pop(call.id, None)
            context.free()
        if leader is not None:
            await self._follow(call, leader)

    def _leader(self, call: Call, identity: bytes | None) -> Call | None:
        """The call that does the same, if there is one; else this call leads those that come."""
        if identity is None or not call.session.id:
            return None
        shared = call.session.shared
        known = shared.get(identity)
        if known is not None and known is not call and known.state not in (CallState.FAILED, CallState.CANCELLED):
            return known if call.spec.share else None
        shared[identity] = call
        call.identity = identity
        return None

    async def _follow(self, call: Call, leader: Call) -> None:
        """Takes over what the leader makes, as it makes it."""
        call.follow(leader)
        self._priorities.follow(call, leader)
        self._priorities_changed()
        call.engine, call.model = leader.engine, leader.model
        call.times.queued = call.session.clock()
        try:
            for own, source in zip(call.outputs, leader.outputs, strict=True):
                with source.read() as reader:
                    while pieces := await self._more(call, reader, source):
                        if call.state is not CallState.DECODE:
                            call.times.started = call.times.first_token = call.session.clock()
                            call.move(CallState.DECODE)
                        for piece in pieces:
                            own.append(piece)
                if source.state is not VariableState.READY:
                    reason = source.failure or Failure("cancelled", "the call that served this one was cancelled")
                    raise CallFailed(reason)
                if own is not call.output:
                    call.session.assigning(own, own.text)
                    await call.session.flushed()
                    own.complete()
        except ProducerRestarted:
            call.stop_following()
            self._priorities.follow(call, leader)
            raise
        usage = leader.usage
        call.usage = Usage(usage.prompt, usage.prompt, usage.completion, reasoning=usage.reasoning)
        call.finish_reason = leader.finish_reason

    @staticmethod
    async def _more(call: Call, reader: Reader, source: Variable) -> Sequence[Piece]:
        """Return the next pieces of the leader's variable."""
        call.awaits = source
        try:
            return await reader.more()
        finally:
            call.awaits = None

    def end_stuck(self, sessions: Iterable[Session] = ()) -> list[Call]:
        """End calls that can make no progress, and return them. Each is a fault of this server: there should be none.

        Call it every few seconds. `sessions`: sessions in which it searches for unfinished calls without a coroutine.
        """
        stuck = [call for call in self._calls.values() if call.is_stuck]
        lost = {
            call.id
            for session in sessions
            if session.unfinished and not session.closed
            for call in session.calls.values()
            if not call.state.final and call.id not in self._tasks and call.id not in self._to_submit
        }
        stuck += [self._without_task[id] for id in lost & self._without_task.keys()]
        self._without_task = {
            call.id: call for session in sessions for call in session.calls.values() if call.id in lost
        }
        for call in stuck:
            waits = (
                "has no coroutine" if call.awaits is None else f"waits for {call.awaits.name!r}, which gets no value"
            )
            log.error("call %s of session %r is ended: it %s", call.id, call.session.id, waits)
            failure = Failure("internal_error", f"internal error: the call {waits}", call.id)
            self._end(call, CallState.FAILED, failure)
        return stuck

    def _end(self, call: Call, state: CallState, failure: Failure | None) -> None:
        """Moves a call to its final state, once, what it makes with it, and whoever reads what will not be."""
        ends = [(call, state, failure)]
        while ends:
            call, state, failure = ends.pop()
            if call.state.final:
                continue
            call.failure = failure
            call.times.finished = call.session.clock()
            call.move(state)
            call.conclude()
            self._observe(call)  # while those are still there who wait for it
            self._stop(call)
            if failure is not None and not call.session.closed:
                ends += [
                    (reader, CallState.FAILED, upstream(v)) for v in call.outputs if v.failure for reader in v.consumers
                ]

    def _fail_readers(self, variable: Variable) -> None:
        """Whoever reads the variable fails: it will not be."""
        for reader in variable.consumers:
            self._end(reader, CallState.FAILED, upstream(variable))

    def _stop(self, call: Call) -> None:
        """Frees its context and ends its coroutine, unless that is the one that asks."""
        context = self._contexts.pop(call.id, None)
        if context is not None:
            context.free()
        task = self._tasks.get(call.id)
        if task is not None and task is not asyncio.current_task():
            task.cancel()


def _at_fault(call: Call, error: EngineFailure) -> str | None:
    """Return the path of the field in a call's request because of which an engine failed; None if there is none."""
    if error.code == "context_length_exceeded":
        return call.spec.at(call.spec.prompt_field)
    slots = any(slot.name is not None for slot in call.spec.slots)  # slots may have a field of the same name
    return None if error.field is None or slots else call.spec.at(error.field)


def _start_over(call: Call) -> bool:
    """Makes the call as if it had not begun, but for the slots that are done. False if it was shown to a client."""
    unfinished = [variable for variable in call.outputs if not variable.state.final]
    if any(variable.is_exposed for variable in unfinished):
        return False
    for variable in unfinished:
        variable.restart()
    call.usage, call.finish_reason = Usage(), None
    call.move(CallState.WAITING)
    return True
