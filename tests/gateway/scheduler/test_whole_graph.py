"""Model test of the graph, the scheduler and the journal's replay together, against a slow model.

The steps are random: declarations, values, calls with slots, pieces, ends, failures, lost engines, subscribers that
arrive and leave, deletions and restarts. After each step the graph must equal the model: values are assigned once and
stay, exactly those calls run whose outputs can still be read, no reader waits for a value that exists, and nothing is
left over at the end.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.sampling_params import SamplingParams
from gateway.engines.protocol import (
    ContextRefused,
    Engine,
    EngineLost,
    EventCallback,
    PrefillResult,
    StepTimes,
    TokenDelta,
    Urgency,
)
from gateway.graph.call import Call, CallSpec, CallState
from gateway.graph.errors import GraphError
from gateway.graph.events import Fact
from gateway.graph.limits import SessionLimits
from gateway.graph.references import Reference
from gateway.graph.segments import Input, PromptContent, Segment, Slot, Text, tokens_of_content
from gateway.graph.session import Session
from gateway.graph.variable import Piece, VariableState
from gateway.journal.records import Record, entries_of, facts_of, record_of, session_record
from gateway.journal.replay import Replay, finish_replay
from gateway.scheduler import Scheduler
from tests.fakes.engine import CodePointRun

NAMES = [f"n{index}" for index in range(6)]
SHAPES: list[list[tuple[str, str, bool]]] = [
    [],
    [("", "n0 n1", True), ("n0 n1", "n2", False)],
    [("", "n0", False), ("n0", "n1", False), ("n0", "n2", False), ("n1 n2", "n3 n4", True)],
    [("", "n0", True), ("", "n1 n2", True), ("n1", "n3", False)],
]
"""Graphs at the beginning of the test: inputs and outputs of each call, and whether it is deferred."""


class ScriptedEngine:
    """Engine whose tokens the test chooses."""

    def __init__(self) -> None:
        self.name = "puppets"
        self.tokens_per_unit = 1.0
        self.constrains_after_reasoning = True
        self.pauses_prompts = False
        self.is_ready = True
        self.step_times = StepTimes(row_seconds=0.001, step_seconds=0.01)
        self.contexts: list[ScriptedContext] = []

    @property
    def load(self) -> int:
        return len(self.contexts)

    async def find_ready(self, model: str, *, wait: bool = True) -> Sequence[Engine]:
        return [self]

    def open_text(self, *, adds_space: bool) -> CodePointRun:
        return CodePointRun()

    def open(self, scope: str, urgency: Urgency) -> "ScriptedContext":
        context = ScriptedContext(self)
        self.contexts.append(context)
        return context


class ScriptedContext:
    """Context of a ScriptedEngine. `script`: its next outputs, each a piece, None for the end, or an error."""

    def __init__(self, engine: ScriptedEngine) -> None:
        self.tokens: list[int] = []
        self.generating = False
        self.script: asyncio.Queue[str | None | Exception] = asyncio.Queue()
        self._engine = engine

    @property
    def call(self) -> int:
        """Number of the call that it runs, which is the first token."""
        return self.tokens[0]

    def fill(self, content: PromptContent, *, start: int | None = None) -> None:
        self.tokens[len(self.tokens) if start is None else start :] = tokens_of_content(content)

    async def generate(self, sampling: SamplingParams, tell: EventCallback, *, heals: bool = False) -> None:
        self.generating = True
        try:
            prefilled = False
            while True:
                item = await self.script.get()
                if isinstance(item, Exception):
                    raise item
                if not prefilled:
                    tell(PrefillResult(len(self.tokens), 0))
                prefilled = True
                tell(TokenDelta(Piece(item or "", 1), None if item is not None else "stop"))
                if item is None:
                    return
        finally:
            self.generating = False

    def rerank(self, urgency: Urgency) -> None:
        """Do nothing: the order does not matter here."""

    def retain(self, returns: Sequence[float]) -> None:
        """Do nothing: there is no cache here."""

    def free(self) -> None:
        if self in self._engine.contexts:
            self._engine.contexts.remove(self)


class MemoryLog:
    """Log in memory, through the journal's records."""

    def __init__(self) -> None:
        self.facts: list[tuple[int, int, Record]] = []

    def check(self) -> None:
        """Accept facts always."""

    def open_session(self, session: Session) -> None:
        self.facts.append((1, 0, session_record(session)))

    def write(self, session: Session, fact: Fact) -> None:
        self.facts.append((1, session.event_log.fact_count, record_of(fact)))

    async def flush(self) -> None:
        await asyncio.sleep(0)

    def replay(self) -> Session:
        """Return the session as another process would restore it."""
        ((_, _, entry),) = entries_of(self.facts)
        pairs = facts_of(entry[entry.index(b"[", 1) : -1])
        replayed = Replay(pairs[0][1], SessionLimits(), self)
        for seq, record in pairs[1:]:
            replayed.apply(seq, record)
        return replayed.session


@dataclass(eq=False)
class ModelVariable:
    """Expected state of a variable."""

    name: str
    state: VariableState = VariableState.DECLARED
    value: str | None = None
    producer: "ModelCall | None" = None
    text: str = ""
    readers: int = 0
    """Number of clients that read its stream."""
    exposed: bool = False
    is_deleted: bool = False


@dataclass(eq=False)
class ModelCall:
    """Expected state of a call."""

    number: int
    id: str
    inputs: list[ModelVariable]
    outputs: list[ModelVariable]
    deferred: bool
    client: bool
    """Whether its own client still waits."""
    state: str = "live"
    losses: int = 0

    @property
    def current(self) -> ModelVariable:
        """Variable that the call generates now."""
        return next(var for var in self.outputs if not var.state.is_final)


@dataclass
class ModelReader:
    """A client that reads a value as it grows."""

    var: ModelVariable
    task: "asyncio.Task[str]"
    text: list[str] = field(default_factory=list)


class WholeGraph(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.by_name: dict[str, ModelVariable] = {}
        self.vars: list[ModelVariable] = []
        self.model_calls: list[ModelCall] = []
        self.retired: set[str] = set()
        self.readings: list[ModelReader] = []
        self.unproduced: dict[ModelVariable, Any] = {}

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        async def run_and_settle() -> Any:
            result = await work
            for _ in range(60):
                await asyncio.sleep(0)
            return result

        return self.loop.run_until_complete(run_and_settle())

    def call_in_loop(self, function: Callable[[], Any]) -> None:
        """Call a function inside the event loop."""

        async def run_function() -> None:
            function()

        self.run(run_function())

    @initialize(shape=st.sampled_from(SHAPES))
    def begin(self, shape: Sequence[tuple[str, str, bool]]) -> None:
        self.log = MemoryLog()
        self.session = Session(id="s", tenant="t", created=0.0, ttl=60.0, sink=self.log)
        self.log.open_session(self.session)
        self.engine = ScriptedEngine()
        self.scheduler = Scheduler(self.engine, 1000)

    def real(self, work: ModelCall) -> Call:
        return self.session.calls[work.id]

    # the model

    def settle(self) -> None:
        """Propagate failures to consumers, and cancel calls that are not needed."""
        changed = True
        while changed:
            changed = False
            for work in self.model_calls:
                if work.state != "live":
                    continue
                if any(var.state in (VariableState.FAILED, VariableState.CANCELLED) for var in work.inputs):
                    self.end(work, "failed")
                    changed = True
                elif not self.is_needed(work):
                    self.end(work, "cancelled")
                    changed = True

    def is_needed(self, work: ModelCall) -> bool:
        return (
            any(
                (work.deferred and not var.is_deleted)
                or var.readers
                or any(var in other.inputs and other.state == "live" for other in self.model_calls)
                for var in work.outputs
            )
            or work.client
        )

    def end(self, work: ModelCall, state: str) -> None:
        work.state = state
        work.client = False
        for var in work.outputs:
            if not var.state.is_final:
                var.state = VariableState.FAILED if state == "failed" else VariableState.CANCELLED

    # rules

    @rule(name=st.sampled_from(NAMES), value=st.none() | st.text("xyz<>", max_size=4))
    def put(self, name: str, value: str | None) -> None:
        taken = name in self.retired or (
            name in self.by_name and self.by_name[name].state is not VariableState.DECLARED
        )
        try:
            self.run(self.scheduler.start(self.session, self.session.add_variable(name, value), promised=True))
        except GraphError:
            assert taken
            return
        assert not taken
        var = self.var(name)
        if value is not None:
            var.state, var.value = VariableState.READY, value

    def var(self, name: str) -> ModelVariable:
        if name not in self.by_name:
            self.by_name[name] = ModelVariable(name)
            self.vars.append(self.by_name[name])
        return self.by_name[name]

    @rule(
        reads=st.lists(st.sampled_from(NAMES), max_size=2, unique=True),
        makes=st.lists(st.sampled_from(NAMES), min_size=1, max_size=2, unique=True),
        deferred=st.booleans(),
    )
    def call(self, reads: list[str], makes: list[str], deferred: bool) -> None:
        number = len(self.model_calls) + 1
        segments: list[Segment] = [Text([number])]
        segments += [Input(Reference(name), "messages") for name in reads]
        segments += [Slot(name, SamplingParams()) for name in makes[:-1]]
        spec = CallSpec(
            model="m", segments=[*segments, Slot(None, SamplingParams())], output=makes[-1], deferred=deferred
        )
        wrong = (
            any(name not in self.by_name or self.by_name[name].is_deleted for name in reads)
            or any(name in self.retired for name in makes)
            or any(name in self.by_name and self.by_name[name].state is not VariableState.DECLARED for name in makes)
            or bool(set(reads) & set(makes))
            or any(self.depends(self.by_name[made], reads) for made in makes if made in self.by_name)
        )
        try:
            addition = self.session.add_all([spec])
        except GraphError:
            assert wrong
            return
        assert not wrong
        call = addition.calls[0]
        inputs = [self.by_name[name] for name in reads]
        work = ModelCall(number, call.id, inputs, [self.var(name) for name in makes], deferred, client=not deferred)
        for var in work.outputs:
            var.state, var.producer = VariableState.PENDING, work
        self.model_calls.append(work)
        if not deferred:
            self.call_in_loop(lambda: self.scheduler.subscribe(call.output))
        self.run(self.scheduler.start(self.session, addition, promised=deferred))
        self.settle()

    def depends(self, var: ModelVariable, reads: list[str]) -> bool:
        """Return whether one of the names that are read waits for the variable, directly or not."""
        seen: set[ModelVariable] = set()
        stack = [self.by_name[name] for name in reads if name in self.by_name]
        while stack:
            current = stack.pop()
            if current is var:
                return True
            if current not in seen and current.producer is not None:
                seen.add(current)
                stack += current.producer.inputs
        return False

    def generating_calls(self) -> list[ModelCall]:
        """Return the calls that should be generating now."""
        ready = VariableState.READY
        return [w for w in self.model_calls if w.state == "live" and all(var.state is ready for var in w.inputs)]

    def context(self, work: ModelCall) -> ScriptedContext:
        (context,) = [one for one in self.engine.contexts if one.call == work.number and one.generating]
        return context

    def emit(self, work: ModelCall, item: str | None | Exception) -> None:
        context = self.context(work)
        self.call_in_loop(lambda: context.script.put_nowait(item))

    @precondition(lambda self: self.generating_calls())
    @rule(data=st.data(), text=st.text("ab<", min_size=1, max_size=3))
    def piece(self, data: st.DataObject, text: str) -> None:
        work = data.draw(st.sampled_from(self.generating_calls()), label="call")
        var = work.current
        self.emit(work, text)
        var.text += text
        var.state = VariableState.STREAMING
        var.exposed |= var.readers > 0

    @precondition(lambda self: self.generating_calls())
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        work = data.draw(st.sampled_from(self.generating_calls()), label="call")
        var = work.current
        self.emit(work, None)
        var.state, var.value = VariableState.READY, var.text
        if var is work.outputs[-1]:
            work.state, work.client = "done", False
        self.settle()

    @precondition(lambda self: self.generating_calls())
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        work = data.draw(st.sampled_from(self.generating_calls()), label="call")
        self.emit(work, ContextRefused("step_failed", "no"))
        self.end(work, "failed")
        self.settle()

    @precondition(lambda self: any(work.losses == 0 for work in self.generating_calls()))
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        work = data.draw(st.sampled_from([work for work in self.generating_calls() if work.losses == 0]), label="call")
        unfinished = [var for var in work.outputs if not var.state.is_final]
        self.emit(work, EngineLost("gone", suspect=False))  # a suspect would run alone; see test_isolation.py
        work.losses += 1
        if any(var.exposed for var in unfinished):
            self.end(work, "failed")
        else:
            for var in unfinished:
                var.text, var.state = "", VariableState.PENDING
        self.settle()

    @precondition(lambda self: self.by_name)
    @rule(data=st.data())
    def reader_arrives(self, data: st.DataObject) -> None:
        var = self.by_name[data.draw(st.sampled_from(sorted(self.by_name)), label="variable")]
        real = self.session.variable(var.name)
        pieces: list[str] = []

        async def read() -> str:
            with self.session.read(real) as reader:
                while more := await reader.next_pieces():
                    pieces.extend(piece.text for piece in more)
            return "".join(pieces)

        self.call_in_loop(lambda: self.scheduler.subscribe(real))
        reading = ModelReader(var, self.loop.create_task(read()), pieces)
        self.readings.append(reading)
        var.readers += 1
        var.exposed |= bool(var.text) and not var.state.is_final
        self.run(asyncio.sleep(0))

    @precondition(lambda self: self.readings)
    @rule(data=st.data())
    def reader_leaves(self, data: st.DataObject) -> None:
        reading = self.readings.pop(data.draw(st.integers(0, len(self.readings) - 1), label="reader"))
        reading.task.cancel()
        reading.var.readers -= 1
        real = self.real_of(reading.var)
        self.run(asyncio.sleep(0))
        self.call_in_loop(lambda: self.scheduler.unsubscribe(real))
        self.settle()

    def real_of(self, var: ModelVariable) -> Any:
        if var.producer is not None:
            makes = self.real(var.producer).outputs
            return makes[var.producer.outputs.index(var)]
        return self.unproduced[var] if var.is_deleted else self.session.variable(var.name)

    @precondition(lambda self: any(work.client for work in self.model_calls))
    @rule(data=st.data())
    def client_disconnects(self, data: st.DataObject) -> None:
        work = data.draw(st.sampled_from([work for work in self.model_calls if work.client]), label="call")
        work.client = False
        self.call_in_loop(lambda: self.scheduler.unsubscribe(self.real(work).output))
        self.settle()

    @precondition(lambda self: self.by_name)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        var = self.by_name.pop(data.draw(st.sampled_from(sorted(self.by_name)), label="variable"))
        if var.producer is None:
            self.unproduced[var] = self.session.variable(var.name)
        if var.state is VariableState.READY:
            self.retired.add(var.name)
        var.is_deleted = True
        if var.producer is None and not var.state.is_final:
            var.state = VariableState.CANCELLED
        self.call_in_loop(lambda: self.scheduler.release(self.session.delete(var.name)))
        self.settle()

    @rule()
    def restart(self) -> None:
        for reading in self.readings:
            reading.task.cancel()
            reading.var.readers = 0
        self.readings.clear()
        facts = list(self.log.facts)  # a process that dies stores no more facts
        self.run(self.scheduler.close())
        before = {event.id for event in self.session.event_log.events if event.id <= facts[-1][1]}
        self.log.facts = facts
        self.engine = ScriptedEngine()
        self.scheduler = Scheduler(self.engine, 1000)
        self.session = self.log.replay()
        finish_replay(self.session)
        ids = [event.id for event in self.session.event_log.events]
        assert before <= set(ids)
        assert ids == sorted(set(ids))
        self.call_in_loop(lambda: self.scheduler.resume(self.session))
        for work in self.model_calls:
            if work.state != "live":
                continue
            work.client, work.losses = False, 0
            unfinished = [var for var in work.outputs if not var.state.is_final]
            if any(var.exposed for var in unfinished):
                self.end(work, "failed")
            for var in unfinished:
                if not var.state.is_final:
                    var.text, var.state = "", VariableState.PENDING
        self.unproduced.clear()
        self.settle()

    # invariants

    @invariant()
    def graph_equals_model(self) -> None:
        if not hasattr(self, "session"):
            return
        real = {name: (var.state, var.value) for name, var in self.session.variables.items()}
        model = {name: (var.state, var.value) for name, var in self.by_name.items()}
        assert real == model
        states = {"live": False, "done": CallState.DONE, "failed": CallState.FAILED, "cancelled": CallState.CANCELLED}
        for work in self.model_calls:
            call = self.real(work)
            expected = states[work.state]
            assert call.state is expected if expected else not call.state.is_final, (work, call.state, call.failure)
        live = {work.number for work in self.model_calls if work.state == "live"}
        assert self.scheduler.unfinished_calls == len(live) == self.session.unfinished_calls
        assert {context.call for context in self.engine.contexts} == live, (
            "each live call has a context, and no other call"
        )
        generating_calls = {work.number for work in self.generating_calls()}
        generating = {context.call for context in self.engine.contexts if context.generating}
        assert generating == generating_calls, "exactly the calls with all inputs generate"

    @invariant()
    def no_call_is_stuck(self) -> None:
        if hasattr(self, "session"):
            assert self.scheduler.end_stuck([self.session]) == []

    @invariant()
    def readers_have_all_existing_text(self) -> None:
        for reading in self.readings:
            if reading.var.state is VariableState.READY:
                assert reading.task.done()
                assert reading.task.result() == reading.var.value
            elif not reading.var.state.is_final:
                assert not reading.task.done()
                assert "".join(reading.text) == reading.var.text

    def teardown(self) -> None:
        if hasattr(self, "session"):
            self.run(self.scheduler.close())
            for reading in self.readings:
                reading.task.cancel()
            self.run(asyncio.sleep(0))
            assert not self.engine.contexts
            assert self.scheduler.unfinished_calls == 0
            assert self.session.unfinished_calls == 0
            assert not asyncio.all_tasks(self.loop)
        self.loop.close()


TestWholeGraph = WholeGraph.TestCase
TestWholeGraph.settings = settings(
    max_examples=150,
    stateful_step_count=50,
    derandomize=True,  # the same examples in each run; remove it to search for more
    suppress_health_check=list(HealthCheck),
)
