"""The domain, the scheduler and the journal's replay together, against a slow model of what should be.

Random declarations, values, calls with slots, pieces, ends, failures, deaths, readers that come and go, deletions and
restarts. After each step what the graph says must be what the model says: values are assigned once and stay, exactly
the calls run that somebody can still read, nobody waits for what is there, and nothing is left over at the end.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

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
from gateway.graph.call import Call, CallSpec, CallState, Input, SamplingParams, Segment, Slot, Text
from gateway.graph.errors import GraphError
from gateway.graph.events import Fact
from gateway.graph.references import Reference
from gateway.graph.session import Session, SessionLimits
from gateway.graph.variable import Piece, VariableState
from gateway.journal.records import Record, entries_of, facts_of, record_of, session_record
from gateway.journal.replay import Replay, mend
from gateway.scheduler import Scheduler

NAMES = [f"n{index}" for index in range(6)]
SHAPES: list[list[tuple[str, str, bool]]] = [
    [],
    [("", "n0 n1", True), ("n0 n1", "n2", False)],
    [("", "n0", False), ("n0", "n1", False), ("n0", "n2", False), ("n1 n2", "n3 n4", True)],
    [("", "n0", True), ("", "n1 n2", True), ("n1", "n3", False)],
]
"""What calls read and make, and whether they are deferred; the machine begins with one of them."""


class Puppets:
    """An engine whose every token is the test's decision."""

    def __init__(self) -> None:
        self.name = "puppets"
        self.tokens_per_unit = 1.0
        self.constrains_after_reasoning = True
        self.ready = True
        self.pace = StepTimes(row_seconds=0.001, step_seconds=0.01)
        self.contexts: list[Puppet] = []

    @property
    def load(self) -> int:
        return len(self.contexts)

    async def serving(self, model: str, *, wait: bool = True) -> Sequence[Engine]:
        return [self]

    async def encode(self, text: str) -> Sequence[int]:
        return [ord(c) for c in text]

    def encode_stable(self, text: str) -> tuple[Sequence[int], int]:
        return [ord(c) for c in text], len(text)

    def open(self, scope: str, urgency: Urgency) -> "Puppet":
        puppet = Puppet(self)
        self.contexts.append(puppet)
        return puppet


class Puppet:
    """One context. `says` is what it will say next: a piece, None for the end, or an error."""

    def __init__(self, engine: Puppets) -> None:
        self.tokens: list[int] = []
        self.generating = False
        self.says: asyncio.Queue[str | None | Exception] = asyncio.Queue()
        self._engine = engine

    @property
    def call(self) -> int:
        """Which call it is: the first token says so."""
        return self.tokens[0]

    def fill(self, tokens: Sequence[int]) -> None:
        self.tokens.extend(tokens)

    async def generate(self, sampling: SamplingParams, tell: EventCallback) -> None:
        self.generating = True
        try:
            begun = False
            while True:
                said = await self.says.get()
                if isinstance(said, Exception):
                    raise said
                if not begun:
                    tell(PrefillResult(len(self.tokens), 0))
                begun = True
                tell(TokenDelta(Piece(said or "", 1), None if said is not None else "stop"))
                if said is None:
                    return
        finally:
            self.generating = False

    def rerank(self, urgency: Urgency) -> None:
        """No order here."""

    def free(self) -> None:
        if self in self._engine.contexts:
            self._engine.contexts.remove(self)


class Ledger:
    """A log in memory, through the journal's own rows."""

    def __init__(self) -> None:
        self.facts: list[tuple[int, int, Record]] = []

    def check(self) -> None:
        """Always well."""

    def opened(self, session: Session) -> None:
        self.facts.append((1, 0, session_record(session)))

    def write(self, session: Session, fact: Fact) -> None:
        self.facts.append((1, session.facts, record_of(fact)))

    async def flushed(self) -> None:
        await asyncio.sleep(0)

    def replay(self) -> Session:
        """The session as another process would find it."""
        ((_, _, entry),) = entries_of(self.facts)
        pairs = facts_of(entry[entry.index(b"[", 1) : -1])
        replayed = Replay(pairs[0][1], SessionLimits(), self)
        for seq, record in pairs[1:]:
            replayed.apply(seq, record)
        return replayed.session


@dataclass(eq=False)
class Var:
    """What a variable should be."""

    name: str
    state: VariableState = VariableState.DECLARED
    value: str | None = None
    producer: "Work | None" = None
    text: str = ""
    readers: int = 0
    """Who reads it as it is made."""
    shown: bool = False
    deleted: bool = False


@dataclass(eq=False)
class Work:
    """What a call should be."""

    number: int
    id: str
    inputs: list[Var]
    outputs: list[Var]
    deferred: bool
    client: bool
    """Whether its own client still waits."""
    state: str = "live"
    losses: int = 0

    @property
    def now(self) -> Var:
        """What it is generating."""
        return next(var for var in self.outputs if not var.state.final)


@dataclass
class Reading:
    """A client in the middle of a value."""

    var: Var
    task: "asyncio.Task[str]"
    text: list[str] = field(default_factory=list)


class WholeGraph(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.known: dict[str, Var] = {}
        self.vars: list[Var] = []
        self.works: list[Work] = []
        self.retired: set[str] = set()
        self.readings: list[Reading] = []
        self.unproduced: dict[Var, Any] = {}

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        async def all_of_it() -> Any:
            result = await work
            for _ in range(60):
                await asyncio.sleep(0)
            return result

        return self.loop.run_until_complete(all_of_it())

    def do(self, what: Callable[[], Any]) -> None:
        """On the loop, where all of it belongs."""

        async def done() -> None:
            what()

        self.run(done())

    @initialize(shape=st.sampled_from(SHAPES))
    def begin(self, shape: Sequence[tuple[str, str, bool]]) -> None:
        self.ledger = Ledger()
        self.session = Session(id="s", tenant="t", created=0.0, ttl=60.0, log=self.ledger)
        self.ledger.opened(self.session)
        self.engine = Puppets()
        self.scheduler = Scheduler(self.engine, 1000)

    def real(self, work: Work) -> Call:
        return self.session.calls[work.id]

    # what the model thinks

    def settle(self) -> None:
        """Failures run along edges, and what nobody can read any more ends."""
        changed = True
        while changed:
            changed = False
            for work in self.works:
                if work.state != "live":
                    continue
                if any(var.state in (VariableState.FAILED, VariableState.CANCELLED) for var in work.inputs):
                    self.end(work, "failed")
                    changed = True
                elif not self.wanted(work):
                    self.end(work, "cancelled")
                    changed = True

    def wanted(self, work: Work) -> bool:
        return (
            any(
                (work.deferred and not var.deleted)
                or var.readers
                or any(var in other.inputs and other.state == "live" for other in self.works)
                for var in work.outputs
            )
            or work.client
        )

    def end(self, work: Work, how: str) -> None:
        work.state = how
        work.client = False
        for var in work.outputs:
            if not var.state.final:
                var.state = VariableState.FAILED if how == "failed" else VariableState.CANCELLED

    # rules

    @rule(name=st.sampled_from(NAMES), value=st.none() | st.text("xyz<>", max_size=4))
    def put(self, name: str, value: str | None) -> None:
        taken = name in self.retired or (name in self.known and self.known[name].state is not VariableState.DECLARED)
        try:
            self.run(self.scheduler.start(self.session, self.session.put(name, value), promised=True))
        except GraphError:
            assert taken
            return
        assert not taken
        var = self.var(name)
        if value is not None:
            var.state, var.value = VariableState.READY, value

    def var(self, name: str) -> Var:
        if name not in self.known:
            self.known[name] = Var(name)
            self.vars.append(self.known[name])
        return self.known[name]

    @rule(
        reads=st.lists(st.sampled_from(NAMES), max_size=2, unique=True),
        makes=st.lists(st.sampled_from(NAMES), min_size=1, max_size=2, unique=True),
        deferred=st.booleans(),
    )
    def call(self, reads: list[str], makes: list[str], deferred: bool) -> None:
        number = len(self.works) + 1
        segments: list[Segment] = [Text([number])]
        segments += [Input(Reference(name), "messages") for name in reads]
        segments += [Slot(name, SamplingParams()) for name in makes[:-1]]
        spec = CallSpec(
            model="m", segments=[*segments, Slot(None, SamplingParams())], output=makes[-1], deferred=deferred
        )
        wrong = (
            any(name not in self.known or self.known[name].deleted for name in reads)
            or any(name in self.retired for name in makes)
            or any(name in self.known and self.known[name].state is not VariableState.DECLARED for name in makes)
            or bool(set(reads) & set(makes))
            or any(self.leads(self.known[made], reads) for made in makes if made in self.known)
        )
        try:
            addition = self.session.add_all([spec])
        except GraphError:
            assert wrong
            return
        assert not wrong
        call = addition.calls[0]
        inputs = [self.known[name] for name in reads]
        work = Work(number, call.id, inputs, [self.var(name) for name in makes], deferred, client=not deferred)
        for var in work.outputs:
            var.state, var.producer = VariableState.PENDING, work
        self.works.append(work)
        if not deferred:
            self.do(lambda: self.scheduler.subscribe(call.output))
        self.run(self.scheduler.start(self.session, addition, promised=deferred))
        self.settle()

    def leads(self, var: Var, reads: list[str]) -> bool:
        """Whether something that is read waits for the variable, however long the way."""
        seen: set[Var] = set()
        stack = [self.known[name] for name in reads if name in self.known]
        while stack:
            at = stack.pop()
            if at is var:
                return True
            if at not in seen and at.producer is not None:
                seen.add(at)
                stack += at.producer.inputs
        return False

    def speaking(self) -> list[Work]:
        """Calls that should be generating now."""
        ready = VariableState.READY
        return [w for w in self.works if w.state == "live" and all(var.state is ready for var in w.inputs)]

    def puppet(self, work: Work) -> Puppet:
        (puppet,) = [one for one in self.engine.contexts if one.call == work.number and one.generating]
        return puppet

    def say(self, work: Work, said: str | None | Exception) -> None:
        puppet = self.puppet(work)
        self.do(lambda: puppet.says.put_nowait(said))

    @precondition(lambda self: self.speaking())
    @rule(data=st.data(), text=st.text("ab<", min_size=1, max_size=3))
    def piece(self, data: st.DataObject, text: str) -> None:
        work = data.draw(st.sampled_from(self.speaking()), label="call")
        var = work.now
        self.say(work, text)
        var.text += text
        var.state = VariableState.STREAMING
        var.shown |= var.readers > 0

    @precondition(lambda self: self.speaking())
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        work = data.draw(st.sampled_from(self.speaking()), label="call")
        var = work.now
        self.say(work, None)
        var.state, var.value = VariableState.READY, var.text
        if var is work.outputs[-1]:
            work.state, work.client = "done", False
        self.settle()

    @precondition(lambda self: self.speaking())
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        work = data.draw(st.sampled_from(self.speaking()), label="call")
        self.say(work, ContextRefused("step_failed", "no"))
        self.end(work, "failed")
        self.settle()

    @precondition(lambda self: any(work.losses == 0 for work in self.speaking()))
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        work = data.draw(st.sampled_from([work for work in self.speaking() if work.losses == 0]), label="call")
        unfinished = [var for var in work.outputs if not var.state.final]
        self.say(work, EngineLost("gone", suspect=False))  # else it runs alone; see test_isolation.py
        work.losses += 1
        if any(var.shown for var in unfinished):
            self.end(work, "failed")
        else:
            for var in unfinished:
                var.text, var.state = "", VariableState.PENDING
        self.settle()

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def reader_comes(self, data: st.DataObject) -> None:
        var = self.known[data.draw(st.sampled_from(sorted(self.known)), label="variable")]
        real = self.session.variable(var.name)
        pieces: list[str] = []

        async def read() -> str:
            with self.session.read(real) as reader:
                while more := await reader.more():
                    pieces.extend(piece.text for piece in more)
            return "".join(pieces)

        self.do(lambda: self.scheduler.subscribe(real))
        reading = Reading(var, self.loop.create_task(read()), pieces)
        self.readings.append(reading)
        var.readers += 1
        var.shown |= bool(var.text) and not var.state.final
        self.run(asyncio.sleep(0))

    @precondition(lambda self: self.readings)
    @rule(data=st.data())
    def reader_goes(self, data: st.DataObject) -> None:
        reading = self.readings.pop(data.draw(st.integers(0, len(self.readings) - 1), label="reader"))
        reading.task.cancel()
        reading.var.readers -= 1
        real = self.real_of(reading.var)
        self.run(asyncio.sleep(0))
        self.do(lambda: self.scheduler.unsubscribe(real))
        self.settle()

    def real_of(self, var: Var) -> Any:
        if var.producer is not None:
            makes = self.real(var.producer).outputs
            return makes[var.producer.outputs.index(var)]
        return self.unproduced[var] if var.deleted else self.session.variable(var.name)

    @precondition(lambda self: any(work.client for work in self.works))
    @rule(data=st.data())
    def client_hangs_up(self, data: st.DataObject) -> None:
        work = data.draw(st.sampled_from([work for work in self.works if work.client]), label="call")
        work.client = False
        self.do(lambda: self.scheduler.unsubscribe(self.real(work).output))
        self.settle()

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        var = self.known.pop(data.draw(st.sampled_from(sorted(self.known)), label="variable"))
        if var.producer is None:
            self.unproduced[var] = self.session.variable(var.name)
        if var.state is VariableState.READY:
            self.retired.add(var.name)
        var.deleted = True
        if var.producer is None and not var.state.final:
            var.state = VariableState.CANCELLED
        self.do(lambda: self.scheduler.release(self.session.delete(var.name)))
        self.settle()

    @rule()
    def restart(self) -> None:
        for reading in self.readings:
            reading.task.cancel()
            reading.var.readers = 0
        self.readings.clear()
        facts = list(self.ledger.facts)  # what the process does while it dies is written nowhere
        self.run(self.scheduler.close())
        before = {event.id for event in self.session.events if event.id <= facts[-1][1]}
        self.ledger.facts = facts
        self.engine = Puppets()
        self.scheduler = Scheduler(self.engine, 1000)
        self.session = self.ledger.replay()
        mend(self.session)
        told = [event.id for event in self.session.events]
        assert before <= set(told)
        assert told == sorted(set(told))
        self.do(lambda: self.scheduler.resume(self.session))
        for work in self.works:
            if work.state != "live":
                continue
            work.client, work.losses = False, 0
            unfinished = [var for var in work.outputs if not var.state.final]
            if any(var.shown for var in unfinished):
                self.end(work, "failed")
            for var in unfinished:
                if not var.state.final:
                    var.text, var.state = "", VariableState.PENDING
        self.unproduced.clear()
        self.settle()

    # what must hold after every step

    @invariant()
    def it_is_what_it_should_be(self) -> None:
        if not hasattr(self, "session"):
            return
        real = {name: (var.state, var.value) for name, var in self.session.variables.items()}
        model = {name: (var.state, var.value) for name, var in self.known.items()}
        assert real == model
        states = {"live": False, "done": CallState.DONE, "failed": CallState.FAILED, "cancelled": CallState.CANCELLED}
        for work in self.works:
            call = self.real(work)
            expected = states[work.state]
            assert call.state is expected if expected else not call.state.final, (work, call.state, call.failure)
        live = {work.number for work in self.works if work.state == "live"}
        assert self.scheduler.unfinished == len(live) == self.session.unfinished
        assert {puppet.call for puppet in self.engine.contexts} == live, "a context for each, and none for others"
        speaking = {work.number for work in self.speaking()}
        generating = {puppet.call for puppet in self.engine.contexts if puppet.generating}
        assert generating == speaking, "whoever has all it needs is at work, and nobody else"

    @invariant()
    def no_call_waits_for_what_nothing_makes(self) -> None:
        if hasattr(self, "session"):
            assert self.scheduler.end_stuck([self.session]) == []

    @invariant()
    def readers_have_what_there_is(self) -> None:
        for reading in self.readings:
            if reading.var.state is VariableState.READY:
                assert reading.task.done()
                assert reading.task.result() == reading.var.value
            elif not reading.var.state.final:
                assert not reading.task.done()
                assert "".join(reading.text) == reading.var.text

    def teardown(self) -> None:
        if hasattr(self, "session"):
            self.run(self.scheduler.close())
            for reading in self.readings:
                reading.task.cancel()
            self.run(asyncio.sleep(0))
            assert not self.engine.contexts
            assert self.scheduler.unfinished == 0
            assert self.session.unfinished == 0
            assert not asyncio.all_tasks(self.loop)
        self.loop.close()


TestWholeGraph = WholeGraph.TestCase
TestWholeGraph.settings = settings(
    max_examples=150,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,  # the same ones each time, in the suite; take it out to look for more
    suppress_health_check=list(HealthCheck),
)
