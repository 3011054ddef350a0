"""One coroutine a call: fill what is known, wait for a variable, fill on, generate, publish, free."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import nullcontext

from gateway.engines.base import Delta, Engine, EngineContext, EngineFailure, EngineLost, Engines, Filled
from gateway.graph.call import Call, CallState, Text, Usage
from gateway.graph.errors import Failure, UnresolvedPath
from gateway.graph.objectives import ancestors
from gateway.graph.references import resolve
from gateway.graph.variable import Variable, VariableState
from gateway.scheduler.placement import place
from gateway.scheduler.rank import rank

log = logging.getLogger("myna.scheduler")

_ATTEMPTS = 3
"""Engines that may die under a call before it fails."""


class Overloaded(Exception):
    """As many calls as the queue bound allows are unfinished. `retry_after` is in seconds."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Stopping(Exception):
    """The server is about to end and takes no new work."""


class Scheduler:
    """Owner of the calls' coroutines and their contexts."""

    def __init__(self, engines: Engines, max_calls: int, observe: Callable[[Call], None] = lambda call: None) -> None:
        """`max_calls`: unfinished calls at a time. `observe` is told of every call that ends."""
        self._engines = engines
        self._max_calls = max_calls
        self._observe = observe
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._contexts: dict[str, EngineContext] = {}
        self._last_attempts = asyncio.Lock()
        self._stopping = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def unfinished(self) -> int:
        """Calls that were submitted and have not ended."""
        return len(self._tasks)

    def admit(self, *, continues: bool) -> None:
        """Raises Overloaded, or Stopping, if no new work can be taken.

        `continues`: the work belongs to a graph that runs already, which is never refused in the middle.
        """
        if self._stopping:
            raise Stopping("the server is stopping and takes no new work")
        if not continues and len(self._tasks) >= self._max_calls:
            raise Overloaded(f"{len(self._tasks)} calls are unfinished, as many as may be; try again", 1)

    def rank(self, call: Call) -> float:
        """The call's place in the order of waiting work; lower goes first."""
        return rank(call)

    def stop_admitting(self) -> None:
        """From here on `admit` refuses."""
        self._stopping = True

    def submit(self, call: Call) -> None:
        """Starts a call's coroutine; its results appear in its output variable."""
        self._idle.clear()
        task = asyncio.get_running_loop().create_task(self._run(call), name=call.id)
        self._tasks[call.id] = task
        task.add_done_callback(lambda _: self._ended(call))

    def _ended(self, call: Call) -> None:
        del self._tasks[call.id]
        if not call.state.final:  # its task was cancelled before it first ran
            self._end(call, CallState.CANCELLED, Failure("cancelled", "the call was cancelled", call.id))
        self._observe(call)
        if not self._tasks:
            self._idle.set()

    def cancel(self, call: Call, failure: Failure) -> None:
        """Stops a call; its context is freed at once."""
        if call.state.final:
            return
        self._end(call, CallState.CANCELLED, failure)
        context = self._contexts.pop(call.id, None)
        if context is not None:
            context.free()
        task = self._tasks.get(call.id)
        if task is not None:
            task.cancel()

    def reader_came(self, variable: Variable) -> None:
        """Somebody waits for the variable now: what it needs may rank higher. Pair with `reader_left`."""
        variable.readers += 1
        if variable.producer is not None and not variable.producer.state.final:
            self._rerank(variable.producer)

    def reader_left(self, variable: Variable) -> None:
        """The reader has what it wanted or has gone; what nobody else needs is cancelled."""
        variable.readers -= 1
        self.release(variable)

    def release(self, variable: Variable) -> None:
        """Cancels the variable's producer and its ancestors as far as nobody can read them any more."""
        if variable.producer is None:
            return
        stack = [variable.producer]
        while stack:
            call = stack.pop()
            if call.state.final or call.wanted:
                continue
            self.cancel(call, Failure("cancelled", "nobody waits for this any more", call.id))
            stack.extend(source.producer for source in call.inputs.values() if source.producer is not None)

    def _rerank(self, call: Call) -> None:
        for at in ancestors(call):
            context = self._contexts.get(at.id)
            if context is not None:
                context.rerank(rank(at))

    async def drained(self) -> None:
        """Returns once no call is unfinished."""
        await self._idle.wait()

    async def close(self) -> None:
        """Cancels what runs and waits until it has ended."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # the coroutine

    async def _run(self, call: Call) -> None:
        try:
            await self._attempts(call)
        except EngineFailure as error:
            self._fail(call, Failure(error.code, str(error), call.id))
        except asyncio.CancelledError:
            self._end(call, CallState.CANCELLED, Failure("cancelled", "the call was cancelled", call.id))
            raise
        except Exception as error:
            log.exception("call %s failed for a reason of our own", call.id)
            self._fail(call, Failure("internal_error", f"internal error: {error!r}", call.id))

    async def _attempts(self, call: Call) -> None:
        """Runs the call, and again if its engine dies under it before anybody was shown a token.

        Perhaps it was the call that killed the engine. So its last attempt is made while no other such call runs:
        the one to blame then takes none of the others with it.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                async with self._last_attempts if attempt == _ATTEMPTS else nullcontext():
                    await self._attempt(call)
                return
            except EngineLost as error:
                if attempt == _ATTEMPTS:
                    raise EngineLost(f"{error}; that was attempt {attempt} of {_ATTEMPTS}") from error
                if not call.output.start_over():
                    raise
                log.warning("call %s lost its engine and is run again", call.id)
                call.state, call.usage, call.finish_reason = CallState.WAITING, Usage(), None

    async def _attempt(self, call: Call) -> None:
        engine = place(call, await self._engines.serving(call.spec.model))
        call.engine = engine.name
        context = engine.open(call.scope, rank(call))
        self._contexts[call.id] = context
        try:
            if await self._fill(call, engine, context):
                await self._generate(call, context)
        finally:
            self._contexts.pop(call.id, None)
            context.free()

    async def _fill(self, call: Call, engine: Engine, context: EngineContext) -> bool:
        """Fills segment by segment, waiting where a value is missing. False if one never comes."""
        for segment in call.spec.segments:
            if isinstance(segment, Text):
                context.fill(segment.tokens)
                continue
            source = call.inputs[segment.reference.name]
            await source.final()
            if source.state is not VariableState.READY or source.value is None:
                self._fail(call, _upstream(source))
                return False
            try:
                text = resolve(source.value, segment.reference)
            except UnresolvedPath as error:
                self._fail(call, Failure(error.code, str(error), call.id))
                return False
            if text:
                context.fill(await engine.encode(text))
        return True

    async def _generate(self, call: Call, context: EngineContext) -> None:
        call.times.queued = time.time()
        call.state = CallState.PREFILL
        async for event in context.generate(call.spec.sampling):
            match event:
                case Filled(tokens, cached):
                    call.usage.prompt, call.usage.cached = tokens, cached
                    call.times.started = time.time()
                case Delta(piece, finish):
                    if call.state is CallState.PREFILL:
                        call.state = CallState.DECODE
                        call.times.first_token = time.time()
                    call.usage.completion += piece.tokens
                    if finish is not None:
                        call.finish_reason = finish
                    call.output.append(piece)
        self._end(call, CallState.DONE, None)

    def _fail(self, call: Call, failure: Failure) -> None:
        self._end(call, CallState.FAILED, failure)

    def _end(self, call: Call, state: CallState, failure: Failure | None) -> None:
        """Moves a call to its final state, once, and its output with it."""
        if call.state.final:
            return
        call.state = state
        call.failure = failure
        call.times.finished = time.time()
        if failure is None:
            call.output.complete()
        elif state is CallState.CANCELLED:
            call.output.cancel(failure)
        else:
            call.output.fail(failure)


def _upstream(source: Variable) -> Failure:
    """What a reader of a failed variable is told: the first call that failed, and why."""
    root = source.failure or Failure("cancelled", f"{source.name} was {source.state}")
    if root.code == "upstream_failed":
        return root
    by = f"call {root.call}, " if root.call else ""
    return Failure(
        "upstream_failed",
        f"variable {source.name!r} {source.state}: {by}{root.code}: {root.message}",
        root.call,
    )
