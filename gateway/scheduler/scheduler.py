"""The scheduler: it admits work, gives each call a task, and counts the clients that wait for variables."""

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence

from gateway.engines.protocol import Engines
from gateway.graph.call import Call, CallState, Objective
from gateway.graph.errors import Failure, GraphError
from gateway.graph.limits import SharedLimit
from gateway.graph.session import Addition, Session
from gateway.graph.variable import Variable
from gateway.runtime.fair_gate import FairGate
from gateway.scheduler.cancellation import Cancellation
from gateway.scheduler.cost_model import CostModel
from gateway.scheduler.execution import CallExecutor
from gateway.scheduler.forms.agent_run import AgentPrompts
from gateway.scheduler.input_reader import upstream_failure
from gateway.scheduler.placement import Placement, place
from gateway.scheduler.priority import Priorities
from gateway.scheduler.stuck_calls import StuckCallDetector
from gateway.tools.protocol import Tools

log = logging.getLogger("myna.scheduler")

_GRAPH_OVERLOAD = 2
"""Factor by which the running graphs of one tenant may exceed the limit of unfinished calls."""
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


_RUNNING = (CallState.PREFILL, CallState.DECODE)
"""States of calls on which an engine works."""


class Scheduler:
    """Owner of the calls' tasks."""

    def __init__(
        self,
        engines: Engines,
        max_calls: int,
        observe: Callable[[Call], None] = lambda call: None,
        *,
        several_tenants: bool = False,
        priorities: Priorities | None = None,
        fill_ahead: bool = True,
        pause_programs: bool = False,
        traceparent_of: Callable[[Call], str] | None = None,
        tools: Tools | None = None,
        agent_prompts: AgentPrompts | None = None,
        place: Placement = place,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`max_calls`: maximum number of unfinished calls; with `several_tenants`, no tenant alone may have all of
        them. `observe` is called with each call that ends. `fill_ahead`: fill prompts before all their values exist.
        `pause_programs`, `traceparent_of`, `tools`, `agent_prompts`: see `CallExecutor`.
        `priorities` orders the calls, `place` chooses engines. `now` is the only clock here, in seconds."""
        self._unfinished = SharedLimit(max_calls, several=several_tenants)
        self._priorities = priorities or Priorities(CostModel())
        self._executor = CallExecutor(
            engines,
            self._priorities,
            self.start,
            self._fail_soon,
            fill_ahead=fill_ahead,
            pause_programs=pause_programs,
            place=place,
            traceparent_of=traceparent_of,
            tools=tools,
            agent_prompts=agent_prompts,
            now=now,
        )
        self._cancellation = Cancellation(self._abort, observe)
        self._stuck_calls = StuckCallDetector(self._has_task)
        self._now = now
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._calls: dict[str, Call] = {}
        """The calls of `_tasks`, by id."""
        self._inline: set[str] = set()
        """Ids of calls that run in the tasks of their clients, and that were not aborted."""
        self._starting = FairGate(rests=False)
        """Gate for the slices of large additions."""
        self._to_submit: set[str] = set()
        """Ids of calls that are about to be submitted: large additions are submitted in slices."""
        self._starts: set[asyncio.Task[None]] = set()
        """Tasks that start additions."""
        self._is_stopping = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def unfinished_calls(self) -> int:
        """Number of calls that were submitted and have not ended."""
        return len(self._tasks)

    def count_calls(self) -> Counter[tuple[str, bool]]:
        """Return the number of unfinished calls by model, and whether an engine works on them."""
        return Counter((call.spec.model, call.state in _RUNNING) for call in self._calls.values())

    def count_waits(self) -> Counter[str]:
        """Return the number of unfinished calls by the cause of their wait, see `Call.waits_for`."""
        return Counter([cause for call in self._calls.values() if (cause := call.waits_for) is not None])

    @property
    def is_stopping(self) -> bool:
        """Whether the server is stopping and accepts no new work."""
        return self._is_stopping

    def admit(self, tenant: str, *, continues: bool) -> None:
        """Raise Overloaded, or Stopping, if new work of the tenant cannot be accepted.

        `continues`: the work belongs to a running graph. It is rejected only far above the limit.
        """
        if self._is_stopping:
            raise Stopping("the server is stopping and accepts no new work")
        count = self._unfinished.amount(tenant)
        if count >= _GRAPH_OVERLOAD * self._unfinished.total if continues else not self._unfinished.has_room(tenant):
            raise Overloaded(f"{count} calls of this key are unfinished, the current maximum; try again later", 1)

    def rank(self, call: Call) -> float:
        """Return the call's rank in the order of waiting work. The lowest rank goes first."""
        return self._priorities.rank(call)

    def stop_admitting(self) -> None:
        """Reject new work from now on: `admit` raises Stopping."""
        self._is_stopping = True

    async def start(self, session: Session, addition: Addition, *, promised: bool = False) -> None:
        """Start the calls and set the values of an addition.

        Return when the values are stored, and with `promised` also the calls. Raises GraphError if the journal cannot
        store them; then all calls are cancelled.
        """
        few = len(addition.calls) <= _SLICE_CALLS
        if few:
            for call in addition.calls:
                self.submit(call)
            if not addition.values:
                if promised:
                    await self._set_values(session, addition)
                return
        # Submission is atomic: shield it, so that a disconnect cannot leave a partly submitted graph.
        begin = self._set_values if few else self._start_in_slices
        task = asyncio.get_running_loop().create_task(begin(session, addition))
        self._starts.add(task)
        self._idle.clear()
        task.add_done_callback(self._start_done)
        await asyncio.shield(task)

    def _start_done(self, task: asyncio.Task[None]) -> None:
        self._starts.discard(task)
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
                    began = self._now()
                    for _ in range(min(_SLICE_CALLS, len(rest))):
                        self.submit(rest.popleft())
                        if self._now() - began > _SLICE_SECONDS:
                            break
                await asyncio.sleep(0)
        finally:
            self._to_submit -= ids
        await self._set_values(session, addition)

    async def _set_values(self, session: Session, addition: Addition) -> None:
        try:
            await session.event_log.flush()
        except GraphError as error:
            failure = Failure(error.code, str(error))
            session.set_values(addition, failure)
            for variable, _ in addition.values:
                self._cancellation.fail_consumers(variable)
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
            sources = call.inputs.values()
            failed = next((source for source in sources if source.failure and not call.survives(source)), None)
            if failed is not None:
                self._cancellation.end(call, CallState.FAILED, upstream_failure(failed))
        for call in unfinished:
            self._cancellation.release(call)

    def submit(self, call: Call) -> None:
        """Start a call's coroutine. Its results appear in its outputs."""
        if call.state.is_final:  # cancelled while other calls of its addition were submitted
            self._cancellation.release_sources(call)
            return
        task = asyncio.get_running_loop().create_task(self._run(call), name=call.id)
        self._register(call, task)
        task.add_done_callback(lambda _: self._unregister(call))

    async def run_inline(self, call: Call) -> None:
        """Run a call of a plain request, in the task of the client that waits for it. No other client can read it.

        If the client disconnects, the call is cancelled. Its results are in its outputs when this returns, also if
        another task has cancelled the call.
        """
        task = asyncio.current_task()
        assert task is not None
        self._register(call, task)
        self._inline.add(call.id)
        try:
            await self._run(call)
        except asyncio.CancelledError:
            if call.id in self._inline or task.uncancel():  # the client has disconnected
                raise
        finally:
            self._inline.discard(call.id)
            # in the next turn of the event loop, so that the response is sent first
            asyncio.get_running_loop().call_soon(self._unregister, call)

    def _register(self, call: Call, task: "asyncio.Task[None]") -> None:
        self._priorities.add(call, self._now())
        self._executor.priorities_changed()
        self._idle.clear()
        self._tasks[call.id], self._calls[call.id] = task, call
        self._unfinished.add(call.session.tenant)

    def _unregister(self, call: Call) -> None:
        del self._tasks[call.id], self._calls[call.id]
        self._unfinished.remove(call.session.tenant)
        if not call.state.is_final:  # its task was cancelled before it first ran
            self._cancellation.cancel(call, Failure("cancelled", "the call was cancelled", call.id))
        self._priorities.charge_program(call, self._now())
        self._priorities.end(call)  # last, so that the waiting client gets its answer before this work
        if call.state is CallState.DONE:
            self._priorities.cost_model.learn(call)
        self._cancellation.release_sources(call)
        self._update_idle()

    def _update_idle(self) -> None:
        if not self._tasks and not self._starts:
            self._idle.set()

    def cancel(self, call: Call, failure: Failure) -> None:
        """Cancel a call. Its engine context is freed immediately."""
        self._cancellation.cancel(call, failure)

    def fail_calls(self, session: Session, failure: Failure) -> None:
        """Fail the unfinished calls of a session, in the next turn of the event loop. Values that are ready stay."""
        asyncio.get_running_loop().call_soon(self._fail_calls, session, failure)

    def _fail_calls(self, session: Session, failure: Failure) -> None:
        # consumers first, so that each call has this reason and not that its input failed
        for call in sorted(session.calls.values(), key=lambda call: call.depth, reverse=True):
            if call.finish_reason is None:  # otherwise its text is complete, or its attempt ends it
                self._cancellation.end(call, CallState.FAILED, failure)

    def _fail_soon(self, call: Call, failure: Failure) -> None:
        """Fail a call in the next turn of the event loop."""
        asyncio.get_running_loop().call_soon(self._cancellation.end, call, CallState.FAILED, failure)

    def cancel_tenant(self, tenant: str, failure: Failure) -> None:
        """Cancel all unfinished calls of a tenant."""
        for call in [call for call in self._calls.values() if call.session.tenant == tenant]:
            self.cancel(call, failure)

    def subscribe(
        self, variable: Variable, objective: Objective = Objective.LATENCY, *, interactive: bool = True
    ) -> None:
        """Count a client that waits for the variable. The calls that it needs may get a higher priority.

        `interactive`: the client waits for no other variable. (A client that waits for several variables needs them
        only once the last one is final.) Pair it with `unsubscribe`.
        """
        variable.subscribers += 1
        variable.latency_subscribers += objective is Objective.LATENCY
        variable.interactive_subscribers += interactive and objective is Objective.LATENCY
        self._priorities.subscribe(variable, objective, self._now())
        self._executor.priorities_changed()

    def unsubscribe(
        self, variable: Variable, objective: Objective = Objective.LATENCY, *, interactive: bool = True
    ) -> None:
        """Uncount a client that has its value or has disconnected. Cancel calls that no client or call needs now."""
        variable.subscribers -= 1
        variable.latency_subscribers -= objective is Objective.LATENCY
        variable.interactive_subscribers -= interactive and objective is Objective.LATENCY
        self._priorities.unsubscribe(variable)
        self.release(variable)
        self._executor.priorities_changed()

    def release(self, variable: Variable) -> None:
        """Cancel the variable's producer and its ancestors, as far as no client or call needs them.

        If the variable has no producer and has failed, its consumers fail.
        """
        self._cancellation.release_variable(variable)

    def expect_return(self, call: Call, returns: Sequence[float]) -> None:
        """Record when the program of a call that has ended is expected to extend it, so that engines keep its KV.

        `returns`: earlier durations of such gaps, in seconds, in ascending order.
        """
        self._executor.expect_return(call, returns)

    def forget_program(self, id: str) -> None:
        """Forget on which engine a program runs. Its next call begins anew."""
        self._executor.forget_program(id)

    async def wait_idle(self) -> None:
        """Wait until all calls have ended."""
        await self._idle.wait()

    async def close(self) -> None:
        """Cancel all calls, and wait until their coroutines have ended."""
        tasks = [*self._tasks.values(), *self._starts]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # the task of a call

    async def _run(self, call: Call) -> None:
        try:
            failure = await self._executor.run(call)
        except asyncio.CancelledError:
            self._cancellation.cancel(call, Failure("cancelled", "the call was cancelled", call.id))
            raise
        self._cancellation.end(call, CallState.DONE if failure is None else CallState.FAILED, failure)

    def _abort(self, call: Call) -> None:
        """Free the call's context and cancel its task, unless that is the current one."""
        self._executor.abort(call)
        task = self._tasks.get(call.id)
        if task is not None and task is not asyncio.current_task():
            self._inline.discard(call.id)
            task.cancel()

    def _has_task(self, id: str) -> bool:
        return id in self._tasks or id in self._to_submit

    def end_stuck(self, sessions: Iterable[Session] = ()) -> list[Call]:
        """End calls that can make no progress, and return them. See StuckCallDetector."""
        stuck = self._stuck_calls.find(self._calls.values(), sessions)
        for call, reason in stuck:
            log.error("call %s of session %r is ended: it %s", call.id, call.session.id, reason)
            failure = Failure("internal_error", f"internal error: the call {reason}", call.id)
            self._cancellation.end(call, CallState.FAILED, failure)
        return [call for call, _ in stuck]
