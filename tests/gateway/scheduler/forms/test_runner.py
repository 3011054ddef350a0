"""gateway/scheduler/forms/runner.py: model test of forms, with the scheduler and the journal's replay.

The graphs are random: forms that are nested up to four times, calls with slots, answers that are no lists, calls that
fail. So are the steps: pieces of answers, lost engines, clients that leave, deleted variables, and kills, after which
the session is restored from a prefix of its facts. Each run ends. No element is lost or made twice, no ready value
changes, and results are those of a direct interpreter of the same JSON.
"""

import asyncio
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gateway.graph.call import CallState
from gateway.graph.events import CallAddition, Fact
from gateway.graph.forms.form import Map
from gateway.graph.limits import SessionLimits
from gateway.graph.references import Reference
from gateway.graph.segments import Input
from gateway.graph.session import Session, VariableSpec
from gateway.graph.variable import Variable, VariableState
from gateway.journal.records import Record, entries_of, facts_of, record_of, session_record
from gateway.journal.replay import Replay, finish_replay
from gateway.scheduler import Scheduler
from tests.gateway.scheduler.forms.fake_model import PuppetEngine
from tests.gateway.scheduler.forms.interpreter import Interpreter, TooManyCalls, Undetermined, Value
from tests.gateway.scheduler.forms.random_graphs import graphs
from tests.gateway.scheduler.forms.spec_builder import SpecBuilder

_MAX_CALLS = 120
_MAX_STEPS = 20_000
"""Number of pieces after which a graph of so many calls must have ended."""
_MAX_IDLE = 500
"""Number of rounds of the event loop without a piece, times 30, after which a run makes no progress."""
_INTERRUPTED = ("interrupted", "engine_failed")
"""Codes of failures because of a kill or a lost engine, while a client or a map had read part of a random answer."""


class MemoryLog:
    """Log in memory, through the journal's records. `stored`: number of facts that a kill cannot remove."""

    def __init__(self, facts: list[tuple[int, int, Record]] | None = None) -> None:
        self.facts = facts or []
        self.stored = len(self.facts)
        self.is_dead = False

    def check(self) -> None:
        """Accept facts always."""

    def open_session(self, session: Session) -> None:
        self.facts.append((1, 0, session_record(session)))

    def write(self, session: Session, fact: Fact) -> None:
        if not self.is_dead:
            self.facts.append((1, session.event_log.fact_count, record_of(fact)))

    async def flush(self) -> None:
        count = len(self.facts)
        await asyncio.sleep(0)
        if self.is_dead:
            await asyncio.get_running_loop().create_future()
        self.stored = max(self.stored, count)

    def replay(self) -> Session:
        """Return the session as another process would restore it."""
        ((_, _, entry),) = entries_of(self.facts)
        pairs = facts_of(entry[entry.index(b"[", 1) : -1])
        replayed = Replay(pairs[0][1], SessionLimits(), self)
        for seq, record in pairs[1:]:
            replayed.apply(seq, record)
        finish_replay(replayed.session)
        return replayed.session


class FormRuns(RuleBasedStateMachine):
    def __init__(self, builder: SpecBuilder) -> None:
        super().__init__()
        self.builder = builder
        self.loop = asyncio.new_event_loop()
        self.subscribed: list[str] = []
        """Variables for which a client waits."""
        self.left: set[str] = set()
        """Outputs whose client has left, so that their calls may be cancelled."""
        self.ready: dict[int, str] = {}
        """Values that were ready, by the variable's number."""
        self.losses = 0
        self.trace: list[str] = []

    # the run

    def run(self, work: Coroutine[Any, Any, Any]) -> None:
        async def run_and_settle() -> None:
            await work
            for _ in range(30):
                await asyncio.sleep(0)

        self.loop.run_until_complete(run_and_settle())

    def call_in_loop(self, function: Callable[[], Any]) -> None:
        """Call a function inside the event loop."""

        async def run_function() -> None:
            function()

        self.run(run_function())

    @initialize(graph=graphs(), data=st.data())
    def begin(self, graph: tuple[dict[str, Any], list[Any]], data: st.DataObject) -> None:
        self.graph = variables, calls = graph
        interpreter = Interpreter(_MAX_CALLS)
        try:
            specs, given = self.builder.build(variables, calls)
            texts: dict[str, Value] = {spec.name: spec.value for spec in given}
            self.expected = interpreter.run_graph(calls, texts)
        except (TooManyCalls, Undetermined):
            assume(False)
        self.kept = data.draw(st.sets(st.sampled_from(sorted(self.expected))), label="outputs of deferred calls")
        given += [
            VariableSpec(f"keep_{name}", template=[Input(Reference(name), "template")]) for name in sorted(self.kept)
        ]
        self.log = MemoryLog()
        self.session = Session(id="s", tenant="t", created=0.0, ttl=60.0, sink=self.log)
        self.log.open_session(self.session)
        self.engine = PuppetEngine()
        self.scheduler = Scheduler(self.engine, 100_000, now=lambda: 0.0)
        self.subscribed = [name for name in self.expected if name not in self.kept or data.draw(st.booleans())]
        self.run(self._start(specs, given))

    async def _start(self, specs: Any, given: Any) -> None:
        addition = self.session.add_all(specs, given)
        for name in self.subscribed:
            self.scheduler.subscribe(self.session.variable(name))
        await self.scheduler.start(self.session, addition, promised=True)

    # rules

    @rule(count=st.integers(1, 40), seed=st.integers(0, 1_000))
    def emit(self, count: int, seed: int) -> None:
        """Emit pieces of answers, in a random order."""
        random = Random(seed)
        for _ in range(count):
            if not self.engine.generating:
                return
            self.call_in_loop(lambda: self.engine.step(random))

    @precondition(lambda self: self.engine.generating and self.losses < 2)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        """Lose a context. A call survives this twice."""
        context = data.draw(st.sampled_from(self.engine.generating), label="context")
        self.losses += 1
        self.call_in_loop(context.lose)

    @precondition(lambda self: self.subscribed)
    @rule(data=st.data())
    def client_leaves(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.subscribed), label="output")
        self.subscribed.remove(name)
        self.left.add(name)
        self.call_in_loop(lambda: self.scheduler.unsubscribe(self.session.variable(name)))

    @precondition(lambda self: self.names_to_delete)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        """Delete a variable. Calls that read it go on."""
        name = data.draw(st.sampled_from(self.names_to_delete), label="variable")
        self.trace.append(f"delete {name}")
        self.call_in_loop(lambda: self.scheduler.release(self.session.delete(name)))

    @property
    def names_to_delete(self) -> list[str]:
        """Names of variables that no template keeps. The test does not compare their values."""
        return sorted(
            name for name in self.session.variables if name not in self.expected and not name.startswith("keep_")
        )

    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        """End like a killed process, and restore the session from a prefix of its facts."""
        lost = data.draw(st.integers(0, len(self.log.facts) - self.log.stored), label="facts that are lost")
        facts = self.log.facts[: len(self.log.facts) - lost]
        self.log.is_dead = True
        self.run(self.scheduler.close())
        assert not self.engine.contexts
        self.log = MemoryLog(facts)
        self.engine = PuppetEngine()
        self.scheduler = Scheduler(self.engine, 100_000, now=lambda: 0.0)
        self.session = self.log.replay()
        self.left |= set(self.subscribed)
        self.subscribed.clear()
        self.losses = 0
        self.trace.append(f"kill {lost}")
        self.call_in_loop(lambda: self.scheduler.resume(self.session))

    # invariants

    @invariant()
    def ready_values_stay(self) -> None:
        if not hasattr(self, "session"):
            return
        numbers = {}
        for variable in self.session.variables.values():
            if variable.state is VariableState.READY:
                numbers[variable.number] = variable.value
        for number, value in self.ready.items():
            assert numbers.get(number, value) == value
        self.ready |= numbers
        places = [spec.origin for spec in (call.spec for call in self.session.calls.values()) if spec.origin]
        assert len({(place.call, place.place) for place in places}) == len(places), "a call was added twice"

    @invariant()
    def no_call_is_stuck(self) -> None:
        if hasattr(self, "session"):
            assert self.scheduler.end_stuck([self.session]) == []

    def teardown(self) -> None:
        try:
            if hasattr(self, "session"):
                self._finish()
        finally:
            if hasattr(self, "scheduler"):
                self.run(self.scheduler.close())
            tasks = asyncio.all_tasks(self.loop)
            self.loop.close()
        assert not tasks

    def _finish(self) -> None:
        random = Random(0)
        idle = 0
        for _ in range(_MAX_STEPS):
            if self.engine.generating:
                idle = 0
                self.call_in_loop(lambda: self.engine.step(random))
            elif self.scheduler.unfinished_calls and idle < _MAX_IDLE:  # templates and forms end without the engine
                idle += 1
                self.run(asyncio.sleep(0))
        unfinished = [call for call in self.session.calls.values() if not call.state.is_final]
        assert not unfinished, [(call.id, call.spec.form, call.waiting_on) for call in unfinished]
        self.ready_values_stay()
        assert (self.scheduler.unfinished_calls, self.session.unfinished_calls) == (0, 0)
        assert not self.engine.contexts
        was_interrupted = any(
            variable.failure is not None and variable.failure.code in _INTERRUPTED
            for call in self.session.calls.values()
            for variable in call.outputs
        )
        for name, expected in self.expected.items():
            for variable in self._variables(name):
                self._check(variable, expected, was_interrupted=was_interrupted)
        for call in self.session.calls.values():
            form = call.spec.form
            if isinstance(form, Map) and call.state is CallState.DONE:
                indexes = sorted(int(place) for place in call.children)
                assert [f"{call.output.name}.{index}" for index in indexes] == [
                    call.children[str(index)].output.name for index in indexes
                ]
                if form.on_error == "fail":
                    assert indexes == list(range(len(indexes)))
        self._check_replay()

    def _check_replay(self) -> None:
        """Check that the stored facts restore the same session."""
        restored = self.log.replay()
        assert [record_of(CallAddition(call)) for call in restored.calls.values()] == [
            record_of(CallAddition(call)) for call in self.session.calls.values()
        ]
        for attribute in ("calls", "variables", "edges", "bytes"):
            assert getattr(restored.resources, attribute) == getattr(self.session.resources, attribute), attribute
        assert {name: (v.number, v.state, v.value) for name, v in restored.variables.items()} == {
            name: (v.number, v.state, v.value) for name, v in self.session.variables.items()
        }

    def _variables(self, name: str) -> list[Variable]:
        kept = [self.session.variable(f"keep_{name}")] if name in self.kept else []
        return [*kept, self.session.variable(name)]

    def _check(self, variable: Variable, expected: Value, *, was_interrupted: bool) -> None:
        if variable.has_value and not was_interrupted:
            assert variable.value == expected, variable.name
        elif not variable.has_value:
            failure = variable.failure
            assert failure is not None
            assert failure.code != "internal_error", failure
            may_be_cancelled = variable.name in self.left and variable.name not in self.kept
            assert expected is None or was_interrupted or may_be_cancelled, (variable.name, failure, expected)


@pytest.mark.slow
def test_random_forms_end_like_a_direct_interpreter() -> None:
    with SpecBuilder() as builder:
        run_state_machine_as_test(
            lambda: FormRuns(builder),
            settings=settings(
                max_examples=200,
                stateful_step_count=20,
                derandomize=True,  # the same examples in each run; remove it to search for more
                suppress_health_check=list(HealthCheck),
            ),
        )
