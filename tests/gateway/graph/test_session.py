"""gateway/graph/session.py"""

import dataclasses
import gc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.sampling_params import SamplingParams
from gateway.graph.call import CallSpec, CallState
from gateway.graph.errors import (
    BadReference,
    BadText,
    GraphError,
    SessionClosed,
    TooLarge,
    UnknownVariable,
    VariableAlreadySet,
)
from gateway.graph.forms.form import Map, Origin
from gateway.graph.limits import SessionLimits, SharedLimit, SharedLimits
from gateway.graph.references import Reference
from gateway.graph.segments import Input, Segment, Slot, Text
from gateway.graph.session import Session
from gateway.graph.variable import VariableState


def session(**limits: Any) -> Session:
    return Session(id="s", tenant="t", created=0.0, ttl=60.0, limits=SessionLimits(**limits))


def spec(*reads: str, output: str | None = None, **more: Any) -> CallSpec:
    segments: list[Segment] = [Text([1, 2])]
    segments += [Input(Reference(name), f"messages.{index}.content") for index, name in enumerate(reads)]
    segments.append(Slot(None, SamplingParams()))
    return CallSpec(model="m", segments=segments, output=output, **more)


def put(graph: Session, name: str, value: str) -> None:
    graph.set_values(graph.add_variable(name, value))


def test_calls_and_variables_are_joined() -> None:
    graph = session()
    first = graph.add(spec(output="a"))
    second = graph.add(spec("a", "topic", inputs={"topic": "cats"}))
    assert graph.variable("a").producer is first
    assert graph.variable("a").consumers == [second]
    assert graph.variable("topic").producer is None
    assert graph.variable("topic").value == "cats"
    assert second.waiting_on == ["a"]
    assert second.output.name in graph.variables
    assert second.output.state is VariableState.PENDING


def test_an_unknown_name_is_rejected_with_its_field_and_similar_names() -> None:
    graph = session()
    put(graph, "summary_1", "x")
    with pytest.raises(UnknownVariable, match="did you mean <<summary_1>>") as refusal:
        graph.add(spec("sumary_1", output="out"))
    assert refusal.value.where == "messages.0.content"
    assert "out" not in graph.variables


@pytest.mark.parametrize("kind", [VariableAlreadySet, BadReference, UnknownVariable, TooLarge])
def test_a_rejected_call_changes_nothing(kind: type[GraphError]) -> None:
    graph = session(value_bytes=10)
    graph.add(spec(output="taken"))
    before = (set(graph.variables), set(graph.calls))
    wrong = {
        VariableAlreadySet: spec(output="taken", inputs={"fresh": "x"}),
        BadReference: spec(output="1st", inputs={"fresh": "x"}),
        UnknownVariable: spec("nobody", output="b", inputs={"fresh": "x"}),
        TooLarge: spec(output="b", inputs={"fresh": "x" * 11}),
    }[kind]
    with pytest.raises(kind):
        graph.add(wrong)
    assert (set(graph.variables), set(graph.calls)) == before


def test_inputs_and_output_must_differ() -> None:
    with pytest.raises(VariableAlreadySet, match="is also an output"):
        session().add(spec(output="a", inputs={"a": "x"}))


def test_a_declared_variable_can_be_read_before_it_has_a_producer() -> None:
    graph = session()
    graph.add_variable("later")
    reader = graph.add(spec("later"))
    assert reader.waiting_on == ["later"]
    producer = graph.add(spec(output="later"))
    assert graph.variable("later").producer is producer
    assert graph.variable("later").consumers == [reader]
    with pytest.raises(VariableAlreadySet):
        graph.add_variable("later")


def test_closing_a_session_cancels_unfinished_calls_and_variables() -> None:
    graph = session()
    done, running = graph.add(spec()), graph.add(spec())
    done.set_state(CallState.DONE)
    graph.add_variable("never")
    cancelled = []
    graph.close(lambda call, failure: cancelled.append((call, failure.code)))
    assert cancelled == [(running, "cancelled")]
    assert graph.variable("never").state is VariableState.CANCELLED


def test_dissolving_a_session_frees_its_calls_unless_they_run() -> None:
    graph = session()
    first, second = graph.add_all([spec(output="a"), spec("a", output="b")]).calls
    graph.dissolve()
    assert second.inputs["a"].producer is first
    for call in (first, second):
        call.set_state(CallState.DONE)
        call.conclude()
    gc.collect()
    graph.dissolve()
    del graph, first, second, call
    assert gc.collect() == 0, "no reference cycles were left for the collector"


def test_text_with_lone_surrogates_is_rejected_and_changes_nothing() -> None:
    graph = session()
    with pytest.raises(BadText) as refusal:
        graph.add_variable("a", "x\ud800")
    assert refusal.value.where == "name"
    with pytest.raises(BadText):
        graph.add_variable("a", template=["x\udfff"])
    with pytest.raises(BadText):
        graph.add(spec(output="b", inputs={"in": "\udc00"}))
    assert not graph.variables
    variable = graph.add(spec(output="b")).output
    with pytest.raises(BadText):
        graph.record_value(variable, "\ud800")


def test_a_graph_is_blocked_if_all_calls_wait_for_declared_variables() -> None:
    graph = session()
    assert not graph.is_blocked
    graph.add_variable("declared")
    first, second = graph.add(spec("declared", output="a")), graph.add(spec("a"))
    assert graph.is_blocked
    runs = graph.add(spec())
    assert not graph.is_blocked
    runs.set_state(CallState.DONE)
    assert graph.is_blocked
    put(graph, "declared", "x")
    assert not graph.is_blocked
    for call in (first, second):
        call.set_state(CallState.DONE)
    assert not graph.is_blocked


def test_an_ended_session_accepts_no_additions() -> None:
    shared = SharedLimits(SharedLimit(10_000), SharedLimit(10))
    graph = session()
    graph.resources.join(shared)
    graph.close(lambda call, failure: None)
    for add in (
        lambda: graph.add(spec(output="a")),
        lambda: graph.add_variable("b"),
        lambda: graph.add_variable("c", "x"),
    ):
        with pytest.raises(SessionClosed):
            add()
    assert not graph.calls
    assert shared.bytes.amount("t") == 0


@given(st.lists(st.tuples(st.sets(st.integers(0, 5), max_size=3), st.booleans()), max_size=8))
def test_unfinished_consumers_are_counted(steps: list[tuple[set[int], bool]]) -> None:
    graph = session()
    calls = []
    for number, (reads, ends) in enumerate(steps):
        names = [f"v{read}" for read in reads if read < number]
        calls.append(graph.add(spec(*names, output=f"v{number}")))
        if ends:
            calls[number // 2].state.is_final or calls[number // 2].set_state(CallState.DONE)
        for variable in graph.variables.values():
            unfinished = [call for call in variable.consumers if not call.state.is_final]
            assert variable.unfinished_consumers == len(unfinished)


def element(call: str, output: str, *reads: str) -> CallSpec:
    return dataclasses.replace(spec(*reads, output=output), origin=Origin(call, output))


def test_calls_that_a_form_adds_read_the_variables_that_the_form_reads() -> None:
    graph = session()
    graph.add(spec(output="tone"))
    old = graph.variable("tone")
    body = Map("[]", "item", spec("tone"), 10)
    form = graph.add(CallSpec(model="", form=body, output="results"))
    first = graph.add(element(form.id, "results.0", "tone"))
    graph.delete("tone")
    put(graph, "tone", "another one")
    second = graph.add(element(form.id, "results.1", "tone", "results.0"))
    assert second.inputs == {"tone": old, "results.0": first.output}
    assert graph.add(spec("tone")).inputs["tone"].value == "another one"
    assert second.depth == 3


def test_names_that_forms_have_made_are_not_used_again() -> None:
    graph = session()
    form = graph.add(CallSpec(model="", form=Map("[]", "item", spec(), 10), output="results"))
    graph.add(element(form.id, "results.0"))
    graph.delete("results.0")
    with pytest.raises(VariableAlreadySet):
        graph.add(element(form.id, "results.0"))
    graph.delete("results")
    with pytest.raises(VariableAlreadySet, match="was a form's output"):
        graph.add_variable("results", "x")
