"""Run calls on engines: choose an engine, make attempts at a call, and change to another model or engine."""

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

from gateway.engines.protocol import (
    ContextRefused,
    Engine,
    EngineContext,
    EngineFailure,
    EngineLost,
    Engines,
    NoEngine,
    Urgency,
)
from gateway.graph.budget import BudgetExceeded
from gateway.graph.call import Call, CallState, FailedAttempt, Rendering, Usage
from gateway.graph.errors import Failure, GraphError, UnresolvedPath
from gateway.graph.session import Session
from gateway.graph.variable import ProducerRestarted
from gateway.scheduler.attempt import CallAttempt
from gateway.scheduler.coalescing import copy_outputs, find_leader
from gateway.scheduler.forms.agent_run import AgentPrompts
from gateway.scheduler.forms.form_steps import Start
from gateway.scheduler.forms.runner import Fail, FormRunner
from gateway.scheduler.forms.tool_run import ToolRunner
from gateway.scheduler.input_reader import CallFailed, InputReader, ParsingGate, render_template, upstream_failure
from gateway.scheduler.isolation import Isolation
from gateway.scheduler.placement import Placement, place
from gateway.scheduler.priority import Priorities
from gateway.scheduler.program_gate import ProgramGate
from gateway.scheduler.program_placement import ProgramPlacement
from gateway.tools.protocol import Tools

log = logging.getLogger("myna.scheduler")

_ATTEMPTS = 3
"""Maximum number of attempts at a call, if engines refuse it temporarily or fail for reasons unrelated to it."""
_MAX_RECORDED = 15
"""Maximum number of failed attempts of a call that are recorded. A producer may restart more often."""
_MAX_FREED = 1_000
"""Maximum number of freed contexts that are remembered until it is known when they are read again."""
_SHORT_PAUSE = 1.0
"""Longest pause after which a lost call gets another attempt on the same model, if another model could answer, in
seconds."""


class CallExecutor:
    """Owner of the calls' engine contexts."""

    def __init__(
        self,
        engines: Engines,
        priorities: Priorities,
        start: Start,
        fail: Fail,
        *,
        fill_ahead: bool = True,
        pause_programs: bool = False,
        place: Placement = place,
        traceparent_of: Callable[[Call], str] | None = None,
        tools: Tools | None = None,
        agent_prompts: AgentPrompts | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`start` starts the calls that forms add, `fail` fails a call. `fill_ahead`: fill prompts before all their
        values exist. `pause_programs`: let prompts of programs wait while their KV does not fit. `place` chooses
        engines. `traceparent_of` returns the trace header of a call, if traces are exported. `now`: clock of the
        pauses after long work, in seconds."""
        self._engines = engines
        self._priorities = priorities
        self._fill_ahead = fill_ahead
        self._traceparent_of = traceparent_of
        self._now = now
        self._placement = ProgramPlacement(place)
        self._contexts: dict[str, EngineContext] = {}
        """Contexts of calls that have not ended, by the call's id."""
        self._working_calls: dict[str, Call] = {}
        """Calls that have an engine context, by id."""
        self._freed: dict[str, EngineContext] = {}
        """The latest contexts of calls of programs that have ended, by the call's id, until `expect_return`."""
        self._isolation = Isolation()
        self._gate: ProgramGate | None = None
        if pause_programs:
            self._gate = ProgramGate(
                lambda call: priorities.program_rank(call, now()), priorities.cost_model.answer_tokens, now
            )
        self._parsing = ParsingGate(now)
        """Gate that is held while a large value is parsed; see InputReader."""
        tool_runner = None if tools is None else ToolRunner(tools, self._follow)
        self._forms = FormRunner(start, fail, self._parsing, tool_runner, agent_prompts, now)
        self._is_rerank_scheduled = False

    async def run(self, call: Call) -> Failure | None:
        """Run a call until its outputs are complete and stored. Return the reason if it failed, otherwise None.

        The caller makes the outputs final.
        """
        try:
            for source in call.inputs.values():
                if source.failure is not None and not call.survives(source):
                    return upstream_failure(source)
            if call.spec.unresolved is not None:
                return Failure(UnresolvedPath.code, call.spec.unresolved, call.id)
            if call.spec.form is not None:
                await self._forms.run(call, call.spec.form)
            elif call.spec.model:
                await self._run_with_fallbacks(call)
            else:
                await render_template(call, self._parsing)
            if call.session.id:  # values are stored before they become readable as ready
                for variable in call.outputs:
                    if not variable.state.is_final:
                        call.session.record_value(variable, variable.text)
                await call.session.event_log.flush()
            return None
        except CallFailed as error:
            return error.failure
        except EngineFailure as error:
            return Failure(error.code, str(error), call.id, _field_at_fault(call, error))
        except BudgetExceeded as error:
            await asyncio.sleep(0)  # the other calls of the session fail first, for this reason and not for this call's
            return Failure(error.code, str(error), call.id)
        except GraphError as error:  # a value that the journal could not store
            return Failure(error.code, str(error), call.id)
        except Exception as error:
            log.exception("call %s failed with an internal error", call.id)
            return Failure("internal_error", f"internal error: {error!r}", call.id)

    def abort(self, call: Call) -> None:
        """Free the call's context, if it has one."""
        context = self._contexts.pop(call.id, None)
        if context is not None:
            context.free()

    def expect_return(self, call: Call, returns: Sequence[float]) -> None:
        """See `Scheduler.expect_return`."""
        if (context := self._freed.pop(call.id, None)) is not None:
            context.retain(returns)
        if self._gate is not None:
            self._gate.expect(call, returns)

    def forget_program(self, id: str) -> None:
        """See `Scheduler.forget_program`."""
        self._placement.forget(id)

    def priorities_changed(self) -> None:
        """Inform the engines in the next turn of the loop: once, however many changes there are in this turn."""
        if not self._is_rerank_scheduled:
            self._is_rerank_scheduled = True
            asyncio.get_running_loop().call_soon(self._rerank)

    def _rerank(self) -> None:
        """Send the engines the changed urgencies of the calls that they run."""
        self._is_rerank_scheduled = False
        for call in self._priorities.changed():
            context = self._contexts.get(call.id)
            if context is not None:
                context.rerank(self._urgency(call))

    def _urgency(self, call: Call) -> Urgency:
        """Return the urgency of a call for an engine. Only plain requests are pausable: a call of a named session may
        wait for the value of another call, so it must not wait for KV."""
        pausable = self._gate is not None and call.program is not None and not call.session.id
        return self._priorities.urgency(call)._replace(pausable=pausable)

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
                if not _reset(call, rendering.model, error.code):
                    raise
                log.warning("call %s continues with its next model: %s", call.id, error)
        await self._attempts(call, last, wait=True)

    async def _attempts(self, call: Call, rendering: Rendering, *, wait: bool) -> None:
        """Run the call on one model, and repeat it if its engine is lost before an output is exposed.

        `wait`: also if engines are ready only after a while. The call may have killed the engine. So it gets only one
        more attempt, alone on an engine: see `isolation`.
        """
        attempt = 1
        suspect, lost = False, None
        while True:
            try:
                if suspect and lost is not None:
                    await self._attempt_alone(call, rendering, lost)
                else:
                    await self._attempt(call, rendering, wait=wait, lost=lost)
                return
            except EngineLost as error:
                if suspect and error.suspect:
                    message = f"{error}; that was its second attempt, and the engine worked on nothing else"
                    # CallFailed, so that no fallback model's engine runs the call
                    raise CallFailed(Failure(error.code, message, call.id)) from error
                if attempt == _ATTEMPTS:
                    message = f"{error}; that was attempt {attempt} of {_ATTEMPTS}"
                    raise type(error)(message, pause=error.pause) from error
                lost = call.engine or lost
                if (error.pause > _SHORT_PAUSE and not wait) or not _reset(call, rendering.model, error.code):
                    raise
                attempt += 1
                suspect = suspect or error.suspect
                log.warning("call %s lost its engine and gets another attempt: %s", call.id, error)
                if not suspect and not await self._has_other_engine(rendering.model, lost):
                    await asyncio.sleep(error.pause)
            except ProducerRestarted as error:
                if not _reset(call, rendering.model, "producer_restarted"):
                    message = "a value that this call had partly read is generated again"
                    raise CallFailed(Failure("engine_failed", message, call.id)) from error

    async def _has_other_engine(self, model: str, lost: str | None) -> bool:
        """Return whether an engine other than the lost one accepts work for the model now."""
        try:
            return any(engine.name != lost for engine in await self._engines.find_ready(model, wait=False))
        except NoEngine:
            return False

    async def _attempt(self, call: Call, rendering: Rendering, *, wait: bool, lost: str | None) -> None:
        """Choose an engine and run one attempt. `lost`: name of the engine that lost the call before."""
        if not self._fill_ahead:
            for source in call.inputs.values():
                await call.until_final(source)
        if not call.waiting_on:
            call.set_state(CallState.QUEUED)
        engine = await self._find_engine(call, rendering, wait=wait, lost=lost)
        gate = self._gate
        if gate is None:
            await self._run_on(call, rendering, engine, alone=False)
            return
        try:
            while not gate.try_enter(call, engine):
                await gate.wait(call, engine)
                engine = await self._find_engine(call, rendering, wait=wait, lost=lost)
            await self._run_on(call, rendering, engine, alone=False)
        finally:
            gate.leave(call)

    async def _find_engine(self, call: Call, rendering: Rendering, *, wait: bool, lost: str | None) -> Engine:
        """Choose an engine for a call. See `_attempt`."""
        engines: Sequence[Engine] = ()
        while not engines:
            ready = await self._engines.find_ready(rendering.model, wait=wait)
            engines = await self._isolation.open(ready, passes=partial(self._has_contexts, call.session))
        if lost is not None:
            engines = [engine for engine in engines if engine.name != lost] or engines
        prefix_index, prefixes = self._priorities.prefix_index, self._priorities.prefixes(call)
        several = len(engines) > 1
        held = prefix_index.tokens_by_engine(prefixes) if several else {}
        units = prefixes[-1].tokens if prefixes else 0
        engine = self._placement.choose(call, rendering.model, engines, held, units, self._now())
        if several:
            prefix_index.record_placement(prefixes, engine)
        return engine

    async def _attempt_alone(self, call: Call, rendering: Rendering, lost: str) -> None:
        """Run a call that may have killed an engine, on an engine without other work.

        Wait for all its inputs first: while the engine is reserved, it could not generate them."""
        for source in call.inputs.values():
            await call.until_final(source)
        serving = partial(self._engines.find_ready, rendering.model)
        async with self._isolation.alone(lost, serving) as engine:
            self._placement.leave(call, rendering.model, lost, engine.name)
            await self._run_on(call, rendering, engine, alone=True)

    def _remember_freed(self, call: Call, context: EngineContext) -> None:
        self._freed[call.id] = context
        if len(self._freed) > _MAX_FREED:
            del self._freed[next(iter(self._freed))]

    def _has_contexts(self, session: Session, engine: Engine) -> bool:
        """Return whether calls of the session have contexts on the engine. They may wait for other calls of it."""
        return bool(session.id) and any(
            call.session is session and call.engine == engine.name for call in self._working_calls.values()
        )

    async def _run_on(self, call: Call, rendering: Rendering, engine: Engine, *, alone: bool) -> None:
        """Run one attempt on the engine, or follow an identical call that runs already. `alone`: never follow."""
        call.engine, call.model = engine.name, rendering.model
        self._priorities.cost_model.observe(engine)
        urgency = self._urgency(call)
        if self._traceparent_of is None:
            context = engine.open(call.scope, urgency)
        else:
            context = engine.open(call.scope, urgency, self._traceparent_of(call))
        self._contexts[call.id], self._working_calls[call.id] = context, call
        try:
            inputs = InputReader(call, self._parsing)
            on_prefilled = self._priorities.prompt_prefilled
            attempt = CallAttempt(call, rendering, engine, context, inputs, on_prefilled=on_prefilled)
            identity = await attempt.prepare()
            leader = None if alone else find_leader(call, identity)
            if leader is None:
                await attempt.generate()
                if call.program is not None:
                    self._remember_freed(call, context)
        finally:
            self._contexts.pop(call.id, None)
            self._working_calls.pop(call.id, None)
            context.free()
        if leader is not None:
            await self._follow(call, leader)

    async def _follow(self, call: Call, leader: Call) -> None:
        call.follow(leader)
        self._priorities.follow(call, leader)
        self.priorities_changed()
        try:
            await copy_outputs(call, leader)
        except ProducerRestarted:
            call.stop_following()
            self._priorities.follow(call, leader)
            raise


def _field_at_fault(call: Call, error: EngineFailure) -> str | None:
    """Return the path of the field in a call's request because of which an engine failed; None if there is none."""
    if error.code == "context_length_exceeded":
        return call.spec.field_path(call.spec.prompt_field)
    slots = any(slot.name is not None for slot in call.spec.slots)  # slots may have a field of the same name
    return None if error.field is None or slots else call.spec.field_path(error.field)


def _reset(call: Call, model: str, code: str) -> bool:
    """Reset the call to its state before the first attempt, except for finished slots, and record the attempt on the
    model that failed with the code. Return False if an output is exposed: then nothing is changed."""
    unfinished = [variable for variable in call.outputs if not variable.state.is_final]
    if any(variable.is_exposed for variable in unfinished):
        return False
    for variable in unfinished:
        variable.restart()
    call.lost_tokens += call.usage.completion
    _record_failure(call, model, code)
    call.usage, call.finish_reason, call.stop_string = Usage(), None, None
    call.engine = call.model = None
    call.set_state(CallState.WAITING)
    return True


def _record_failure(call: Call, model: str, code: str) -> None:
    """Add the current attempt to the failed ones, and reset the times that the next attempt sets."""
    now, times, before = call.session.clock(), call.times, call.failed_attempts
    began = before[-1].times.finished if before else None
    if len(before) < _MAX_RECORDED:
        ended = dataclasses.replace(times, created=times.created if began is None else began, finished=now)
        call.failed_attempts = (*before, FailedAttempt(call.engine, model, code, ended))
    if not call.slot_texts:  # otherwise the client may have read a finished slot, so its first token counts
        # another object, because the lost engine may still report to the old one
        call.times = dataclasses.replace(times, started=None, first_token=None, held=0.0, starved=0.0)
