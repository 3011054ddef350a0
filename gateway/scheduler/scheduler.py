"""The scheduler: one coroutine for each call, which fills, waits for variables, generates, publishes and frees."""

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
from gateway.graph.variable import ProducerRestarted, Variable, VariableState
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
_GRAPH_OVERLOAD = 2
"""Factor by which the running graphs of one tenant may exceed the limit of unfinished calls."""
_SHORT_PAUSE = 1.0
"""Longest pause after which a lost call gets another attempt on the same model, if another model could answer, in
seconds."""
_SLICE_SECONDS = 0.005
"""Time for which calls are started before other tasks of the event loop get a turn, in seconds."""
_SLICE_CALLS = 20
"""Number of calls of one addition that are started before other tasks of the event loop get a turn."""


class Overloaded(Exception):
    """The maximum number of calls is unfinished. `retry_after` is in seconds."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Stopping(Exception):
    """The server is stopping and accepts no new work."""


class Scheduler:
    """Owner of the calls' coroutines and of their engine contexts."""

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
        them. `observe` is called with each call that ends. `fill_ahead`: fill prompts before all their values exist.
        `priorities` orders the calls, `place` chooses engines. `now` is the clock of the priorities, in seconds."""
        self._engines = engines
        self._unfinished = SharedLimit(max_calls, several=several_tenants)
        self._observe = observe
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._calls: dict[str, Call] = {}
        """The calls of `_tasks`, by id."""
        self._starting = FairGate(rests=False)
        """Gate for the slices of large additions."""
        self._to_submit: set[str] = set()
        """Ids of calls that are about to be submitted: large additions are submitted in slices."""
        self._without_task: dict[str, Call] = {}
        """Unfinished calls that had no coroutine at the last `end_stuck`. They may get one soon."""
        self._contexts: dict[str, EngineContext] = {}
        self._priorities = priorities or Priorities(CostModel())
        self._informing = False
        """Whether a run of `_inform_engines` is scheduled."""
        self._place = place
        self._now = now
        self._fill_ahead = fill_ahead
        self._owned: set[asyncio.Task[None]] = set()
        self._parsing = FairGate()
        """Gate that is held while a large value is parsed; see InputReader."""
        self._isolation = Isolation()
        self._working_calls: dict[str, Call] = {}
        """Calls that have an engine context, by id."""
        self._stopping = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def unfinished(self) -> int:
        """Number of calls that were submitted and have not ended."""
        return len(self._tasks)

    @property
    def stopping(self) -> bool:
        """Whether the server is stopping and accepts no new work."""
        return self._stopping

    def admit(self, tenant: str, *, continues: bool) -> None:
        """Raise Overloaded, or Stopping, if new work of the tenant cannot be accepted.

        `continues`: the work belongs to a running graph. It is rejected only far above the limit.
        """
        if self._stopping:
            raise Stopping("the server is stopping and accepts no new work")
        count = self._unfinished.amount(tenant)
        if count >= _GRAPH_OVERLOAD * self._unfinished.total if continues else not self._unfinished.has_room(tenant):
            raise Overloaded(f"{count} calls of this key are unfinished, the current maximum; try again later", 1)

    def rank(self, call: Call) -> float:
        """Return the call's rank in the order of waiting work. The lowest rank goes first."""
        return self._priorities.rank(call)

    def stop_admitting(self) -> None:
        """Reject new work from now on: `admit` raises Stopping."""
        self._stopping = True

    async def start(self, session: Session, addition: Addition, *, promised: bool = False) -> None:
        """Start the calls and set the values of an addition.

        Return when the values are stored, and with `promised` also the calls. Raises GraphError if the log cannot store
        them; then all calls are cancelled.
        """
        few = len(addition.calls) <= _SLICE_CALLS
        if few:
            for call in addition.calls:
                self.submit(call)
            if not addition.values:
                if promised:
                    await self._settle(session, addition)
                return
        # Submission is atomic: shield it, so that a disconnect cannot leave a partly submitted graph.
        begin = self._settle if few else self._start_in_slices
        task = asyncio.get_running_loop().create_task(begin(session, addition))
        self._owned.add(task)
        self._idle.clear()
        task.add_done_callback(self._start_done)
        await asyncio.shield(task)

    def _start_done(self, task: asyncio.Task[None]) -> None:
        self._owned.discard(task)
        if not task.cancelled():
            task.exception()  # `start` raises it, unless its client has disconnected; then asyncio would log it
        self._update_idle()

    async def _start_in_slices(self, session: Session, addition: Addition) -> None:
        """Submit many calls in slices, so that other tasks get their turns between them."""
        ids = {call.id for call in addition.calls}
        self._to_submit |= ids
        try:
            rest = deque(addition.calls)
            while rest:
                async with self._starting.turn(session.tenant):
                    began = time.monotonic()
                    for _ in range(min(_SLICE_CALLS, len(rest))):
                        self.submit(rest.popleft())
                        if time.monotonic() - began > _SLICE_SECONDS:
                            break
                await asyncio.sleep(0)
        finally:
            self._to_submit -= ids
        await self._settle(session, addition)

    async def _settle(self, session: Session, addition: Addition) -> None:
        try:
            await session.event_log.flush()
        except GraphError as error:
            failure = Failure(error.code, str(error))
            session.set_values(addition, failure)
            for variable, _ in addition.values:
                self._fail_consumers(variable)
            for call in addition.calls:
                self.cancel(call, failure)
            raise
        session.set_values(addition)

    def resume(self, session: Session) -> None:
        """Submit the unfinished calls of a session that was restored from the journal, and cancel those that are not
        needed."""
        unfinished = [call for call in session.calls.values() if not call.state.is_final]
        for call in unfinished:
            self.submit(call)
        for call in unfinished:
            failed = next((source for source in call.inputs.values() if source.failure is not None), None)
            if failed is not None:
                self._end(call, CallState.FAILED, upstream(failed))
        for call in unfinished:
            self._release(call)

    def submit(self, call: Call) -> None:
        """Start a call's coroutine. Its results appear in its outputs."""
        if call.state.is_final:  # cancelled while other calls of its addition were submitted
            self._release_sources(call)
            return
        task = asyncio.get_running_loop().create_task(self._run(call), name=call.id)
        self._register(call, task)
        task.add_done_callback(lambda _: self._unregister(call))

    async def perform(self, call: Call) -> None:
        """Run a call of a plain request, in the task of the client that waits for it. No other client can read it.

        If the client disconnects, the call is cancelled. Its results are in its outputs when this returns.
        """
        task = asyncio.current_task()
        assert task is not None
        self._register(call, task)
        try:
            await self._run(call)
        finally:  # in the next turn of the event loop, so that the response is sent first
            asyncio.get_running_loop().call_soon(self._unregister, call)

    def _register(self, call: Call, task: "asyncio.Task[None]") -> None:
        self._priorities.add(call, self._now())
        self._priorities_changed()
        self._idle.clear()
        self._tasks[call.id], self._calls[call.id] = task, call
        self._unfinished.add(call.session.tenant)

    def _unregister(self, call: Call) -> None:
        del self._tasks[call.id], self._calls[call.id]
        self._unfinished.remove(call.session.tenant)
        if not call.state.is_final:  # its task was cancelled before it first ran
            self._end(call, CallState.CANCELLED, Failure("cancelled", "the call was cancelled", call.id))
        self._priorities.end(call)  # last, so that the waiting client gets its answer before this work
        if call.state is CallState.DONE:
            self._priorities.cost_model.learn(call)
        self._release_sources(call)
        self._update_idle()

    def _release_sources(self, call: Call) -> None:
        """Cancel sources of an ended call that no other call or client needs."""
        for source in sources(call):
            self._release(source)

    def _update_idle(self) -> None:
        if not self._tasks and not self._owned:
            self._idle.set()

    def cancel(self, call: Call, failure: Failure) -> None:
        """Cancel a call. Its engine context is freed at once."""
        self._end(call, CallState.CANCELLED, failure)

    def subscribe(
        self, variable: Variable, objective: Objective = Objective.LATENCY, *, interactive: bool = True
    ) -> None:
        """Count a client that waits for the variable. The calls that it needs may get a higher priority.

        `interactive`: the client waits for nothing else with it. If a client waits for several variables, only the last
        one to end matters. Pair it with `unsubscribe`.
        """
        variable.subscribers += 1
        variable.latency_subscribers += objective is Objective.LATENCY
        variable.interactive_subscribers += interactive and objective is Objective.LATENCY
        self._priorities.subscribe(variable, objective, self._now())
        self._priorities_changed()

    def unsubscribe(
        self, variable: Variable, objective: Objective = Objective.LATENCY, *, interactive: bool = True
    ) -> None:
        """Uncount a client that has its value or has disconnected. Calls that are not needed any more are cancelled."""
        variable.subscribers -= 1
        variable.latency_subscribers -= objective is Objective.LATENCY
        variable.interactive_subscribers -= interactive and objective is Objective.LATENCY
        self._priorities.unsubscribe(variable)
        self.release(variable)
        self._priorities_changed()

    def release(self, variable: Variable) -> None:
        """Cancel the variable's producer and its ancestors, as far as no client or call needs them any more.

        If the variable has no producer and has failed, its consumers fail.
        """
        if variable.producer is not None:
            self._release(variable.producer)
        elif variable.failure is not None:
            self._fail_consumers(variable)

    def _release(self, call: Call) -> None:
        stack = [call]
        while stack:
            current = stack.pop()
            if current.state.is_final or current.is_needed:
                continue
            self.cancel(current, Failure("cancelled", "no client waits for this call any more", current.id))
            stack.extend(sources(current))

    def _priorities_changed(self) -> None:
        """Inform the engines in the next turn of the loop: once, however many changes there are in this turn."""
        if not self._informing:
            self._informing = True
            asyncio.get_running_loop().call_soon(self._inform_engines)

    def _inform_engines(self) -> None:
        """Send the engines the changed urgencies of the calls that they run."""
        self._informing = False
        for call in self._priorities.changed():
            context = self._contexts.get(call.id)
            if context is not None:
                context.rerank(self._priorities.urgency(call))

    async def drained(self) -> None:
        """Wait until all calls have ended."""
        await self._idle.wait()

    async def close(self) -> None:
        """Cancel all calls, and wait until their coroutines have ended."""
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
            await (self._run_with_fallbacks(call) if call.spec.model else derive(call, self._parsing))
            await self._publish(call)
        except CallFailed as error:
            self._end(call, CallState.FAILED, error.failure)
        except EngineFailure as error:
            self._end(call, CallState.FAILED, Failure(error.code, str(error), call.id, _field_at_fault(call, error)))
        except GraphError as error:  # a value that the log could not store
            self._end(call, CallState.FAILED, Failure(error.code, str(error), call.id))
        except asyncio.CancelledError:
            self._end(call, CallState.CANCELLED, Failure("cancelled", "the call was cancelled", call.id))
            raise
        except Exception as error:
            log.exception("call %s failed with an internal error", call.id)
            self._end(call, CallState.FAILED, Failure("internal_error", f"internal error: {error!r}", call.id))

    async def _publish(self, call: Call) -> None:
        """End a call whose output is complete. Its values are stored before they become readable as ready."""
        if call.session.id:
            for variable in call.outputs:
                if not variable.state.is_final:
                    call.session.record_value(variable, variable.text)
            await call.session.event_log.flush()
        self._end(call, CallState.DONE, None)

    async def _run_with_fallbacks(self, call: Call) -> None:
        """Run the call on its model, or on the next fallback model if no engine of the model can run it. There is no
        fallback once an output is exposed."""
        *others, last = call.spec.renderings
        for rendering in others:
            try:
                await self._attempts(call, rendering, wait=False)
                return
            except ContextRefused:
                raise
            except EngineFailure as error:
                if not _reset(call):
                    raise
                log.warning("call %s continues with its next model: %s", call.id, error)
        await self._attempts(call, last, wait=True)

    async def _attempts(self, call: Call, rendering: Rendering, *, wait: bool) -> None:
        """Run the call on one model, and repeat it if its engine is lost before an output is exposed.

        `wait`: also if engines are ready only after a while. The call may have killed the engine. So it gets only one
        more attempt, alone on an engine: see `isolation`.
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
                if (error.pause > _SHORT_PAUSE and not wait) or not _reset(call):
                    raise
                attempt += 1
                suspect, lost = suspect or error.suspect, call.engine
                log.warning("call %s lost its engine and gets another attempt: %s", call.id, error)
                if not suspect and not await self._has_other_engine(rendering.model, lost):
                    await asyncio.sleep(error.pause)
            except (ProducerRestarted, UnsettledTokens) as error:
                if not _reset(call):
                    message = "a value that this call had partly read is generated again"
                    raise CallFailed(Failure("engine_failed", message, call.id)) from error
                patient = patient or isinstance(error, UnsettledTokens)

    async def _has_other_engine(self, model: str, lost: str | None) -> bool:
        """Return whether an engine other than the lost one accepts work for the model now."""
        try:
            return any(engine.name != lost for engine in await self._engines.serving(model, wait=False))
        except NoEngine:
            return False

    async def _attempt(self, call: Call, rendering: Rendering, *, patient: bool, wait: bool, lost: str | None) -> None:
        """Choose an engine and run one attempt. `lost`: name of the engine that lost the call before."""
        if not self._fill_ahead:
            for source in call.inputs.values():
                await call.until_final(source)
        if not call.waiting_on:
            call.set_state(CallState.QUEUED)
        engines: Sequence[Engine] = ()
        while not engines:
            ready = await self._engines.serving(rendering.model, wait=wait)
            engines = await self._isolation.open(ready, passes=partial(self._has_contexts, call.session))
        if lost is not None:
            engines = [engine for engine in engines if engine.name != lost] or engines
        engine = engines[0]
        if len(engines) > 1:
            prefix_index, prefixes = self._priorities.prefix_index, self._priorities.prefixes(call)
            engine = self._place(call, engines, prefix_index.tokens_by_engine(prefixes))
            prefix_index.record_placement(prefixes, engine)
        await self._run_on(call, rendering, engine, patient=patient, alone=False)

    async def _attempt_alone(self, call: Call, rendering: Rendering, lost: str) -> None:
        """Run a suspect on an engine without other work. Wait for all its inputs first: while the engine is reserved,
        it could not generate them."""
        for source in call.inputs.values():
            await call.until_final(source)
        serving = partial(self._engines.serving, rendering.model)
        async with self._isolation.alone(lost, serving) as engine:
            await self._run_on(call, rendering, engine, patient=True, alone=True)

    def _has_contexts(self, session: Session, engine: Engine) -> bool:
        """Return whether calls of the session have contexts on the engine. They may wait for other calls of it."""
        return bool(session.id) and any(
            call.session is session and call.engine == engine.name for call in self._working_calls.values()
        )

    async def _run_on(self, call: Call, rendering: Rendering, engine: Engine, *, patient: bool, alone: bool) -> None:
        """Run one attempt on the engine, or follow an identical call that runs already. `alone`: never follow.
        `patient`: fill only complete values."""
        call.engine, call.model = engine.name, rendering.model
        self._priorities.cost_model.observe(engine)
        context = engine.open(call.scope, self._priorities.urgency(call))
        self._contexts[call.id], self._working_calls[call.id] = context, call
        try:
            inputs = InputReader(call, self._parsing)
            on_prefilled = self._priorities.prompt_prefilled
            attempt = CallAttempt(call, rendering, engine, context, inputs, patient=patient, on_prefilled=on_prefilled)
            identity = await attempt.prepare()
            leader = None if alone else self._leader(call, identity)
            if leader is None:
                await attempt.generate()
        finally:
            self._contexts.pop(call.id, None)
            self._working_calls.pop(call.id, None)
            context.free()
        if leader is not None:
            await self._follow(call, leader)

    def _leader(self, call: Call, identity: bytes | None) -> Call | None:
        """Return the call that does the same, if there is one. Otherwise register this call as the leader."""
        if identity is None or not call.session.id:
            return None
        shared = call.session.reusable_calls
        known = shared.get(identity)
        if known is not None and known is not call and known.state not in (CallState.FAILED, CallState.CANCELLED):
            return known if call.spec.share else None
        shared[identity] = call
        call.identity = identity
        return None

    async def _follow(self, call: Call, leader: Call) -> None:
        """Copy the leader's outputs as they grow."""
        call.follow(leader)
        self._priorities.follow(call, leader)
        self._priorities_changed()
        call.engine, call.model = leader.engine, leader.model
        call.times.queued = call.session.clock()
        try:
            for target, source in zip(call.outputs, leader.outputs, strict=True):
                with source.read() as reader:
                    while pieces := await call.next_pieces(reader, source):
                        if call.state is not CallState.DECODE:
                            call.times.started = call.times.first_token = call.session.clock()
                            call.set_state(CallState.DECODE)
                        for piece in pieces:
                            target.append(piece)
                if source.state is not VariableState.READY:
                    reason = source.failure or Failure("cancelled", "the call that served this one was cancelled")
                    raise CallFailed(reason)
                if target is not call.output:
                    call.session.record_value(target, target.text)
                    await call.session.event_log.flush()
                    target.complete()
        except ProducerRestarted:
            call.stop_following()
            self._priorities.follow(call, leader)
            raise
        usage = leader.usage
        call.usage = Usage(usage.prompt, usage.prompt, usage.completion, reasoning=usage.reasoning)
        call.finish_reason = leader.finish_reason

    def end_stuck(self, sessions: Iterable[Session] = ()) -> list[Call]:
        """End calls that can make no progress, and return them. Each one is a bug of this server: there should be none.

        Call it every few seconds. `sessions`: sessions in which it searches for unfinished calls without a coroutine.
        """
        stuck = [call for call in self._calls.values() if call.is_stuck]
        lost = {
            call.id
            for session in sessions
            if session.unfinished_calls and not session.is_closed
            for call in session.calls.values()
            if not call.state.is_final and call.id not in self._tasks and call.id not in self._to_submit
        }
        stuck += [self._without_task[id] for id in lost & self._without_task.keys()]
        self._without_task = {
            call.id: call for session in sessions for call in session.calls.values() if call.id in lost
        }
        for call in stuck:
            reason = (
                "has no coroutine" if call.awaits is None else f"waits for {call.awaits.name!r}, which gets no value"
            )
            log.error("call %s of session %r is ended: it %s", call.id, call.session.id, reason)
            failure = Failure("internal_error", f"internal error: the call {reason}", call.id)
            self._end(call, CallState.FAILED, failure)
        return stuck

    def _end(self, call: Call, state: CallState, failure: Failure | None) -> None:
        """Move a call and its outputs to their final states, once. Consumers of outputs that failed fail as well."""
        ends = [(call, state, failure)]
        while ends:
            call, state, failure = ends.pop()
            if call.state.is_final:
                continue
            call.failure = failure
            call.times.finished = call.session.clock()
            call.set_state(state)
            call.conclude()
            self._observe(call)  # before subscribers leave: `observe` may look at them
            self._stop(call)
            if failure is not None and not call.session.is_closed:
                ends += [
                    (consumer, CallState.FAILED, upstream(v))
                    for v in call.outputs
                    if v.failure
                    for consumer in v.consumers
                ]

    def _fail_consumers(self, variable: Variable) -> None:
        """Fail the consumers of a variable that will get no value."""
        for consumer in variable.consumers:
            self._end(consumer, CallState.FAILED, upstream(variable))

    def _stop(self, call: Call) -> None:
        """Free the call's context and cancel its coroutine, unless that is the current task."""
        context = self._contexts.pop(call.id, None)
        if context is not None:
            context.free()
        task = self._tasks.get(call.id)
        if task is not None and task is not asyncio.current_task():
            task.cancel()


def _field_at_fault(call: Call, error: EngineFailure) -> str | None:
    """Return the path of the field in a call's request because of which an engine failed; None if there is none."""
    if error.code == "context_length_exceeded":
        return call.spec.field_path(call.spec.prompt_field)
    slots = any(slot.name is not None for slot in call.spec.slots)  # slots may have a field of the same name
    return None if error.field is None or slots else call.spec.field_path(error.field)


def _reset(call: Call) -> bool:
    """Reset the call to its state before the first attempt, except for finished slots. Return False if an output is
    exposed: then nothing is changed."""
    unfinished = [variable for variable in call.outputs if not variable.state.is_final]
    if any(variable.is_exposed for variable in unfinished):
        return False
    for variable in unfinished:
        variable.restart()
    call.usage, call.finish_reason = Usage(), None
    call.set_state(CallState.WAITING)
    return True
