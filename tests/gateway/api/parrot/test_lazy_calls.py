"""gateway/api/parrot/lazy_calls.py: calls join their session when a client requests an output."""

import pytest

from engine.sampling_params import SamplingParams
from gateway.api.parrot.lazy_calls import LazyCalls
from gateway.graph.call import CallSpec
from gateway.graph.errors import Cycle, TooLarge, UnknownVariable, VariableAlreadySet
from gateway.graph.limits import SessionLimits
from gateway.graph.references import Reference
from gateway.graph.segments import Input, Slot, Text
from gateway.graph.session import Session, VariableSpec


def session(**limits: int) -> Session:
    return Session(id="s", tenant="", created=0.0, ttl=60.0, limits=SessionLimits(**limits))


def spec(output: str, *reads: str, slot: str | None = None) -> CallSpec:
    inputs = [Input(Reference(name), "prompt") for name in reads]
    slots = [Slot(slot, SamplingParams())] if slot else []
    return CallSpec(
        model="m", segments=[Text([1]), *inputs, *slots, Slot(None, SamplingParams())], output=output, deferred=True
    )


def test_only_needed_calls_join_the_session() -> None:
    scope, later = session(), LazyCalls()
    for one in (spec("a"), spec("b", "a", slot="b1"), spec("c", "b1"), spec("other")):
        later.add(scope, one)
    assert not scope.calls
    assert set(scope.variables) == {"a", "b1", "b", "c", "other"}
    addition = later.join(scope, ["c"])
    assert {call.output.name for call in addition.calls} == {"a", "b", "c"}
    assert later.count == 1
    assert later.produces("other")
    assert not later.produces("b1")
    assert later.join(scope, ["c", "a"]).calls == [], "they have joined already"


def test_values_are_set_at_once_and_names_taken() -> None:
    scope, later = session(), LazyCalls()
    addition = later.add(scope, spec("a", "x"), [VariableSpec("x", "value")])
    scope.set_values(addition)
    assert scope.variable("x").value == "value"
    with pytest.raises(VariableAlreadySet):
        later.add(scope, spec("a"))
    with pytest.raises(VariableAlreadySet):
        later.add(scope, spec("x"))


def test_calls_that_no_client_asks_for_count_in_the_sessions_limits() -> None:
    scope, later = session(bytes=50_000, edges=5), LazyCalls()
    scope.set_values(scope.add_variable("x", "value"))
    empty = scope.resources.bytes
    later.add(scope, spec("a", "x", "x"))
    assert scope.resources.bytes > empty + 4_000
    assert (later.edges, scope.resources.edges) == (1, 0)
    large = CallSpec(model="m", segments=[Text([1] * 20_000), Slot(None, SamplingParams())], output="b", deferred=True)
    with pytest.raises(TooLarge, match="the maximum is"):
        later.add(scope, large)
    kept = scope.resources.bytes
    later.join(scope, ["a"])
    assert (later.edges, scope.resources.edges, scope.resources.bytes) == (0, 1, kept), "what is counted is the same"
    for name in ("c", "d", "e", "f"):
        later.add(scope, spec(name, "x"))
    with pytest.raises(TooLarge, match="inputs"):
        later.add(scope, spec("g", "x"))


def test_two_outputs_cannot_be_one_variable() -> None:
    scope, later = session(), LazyCalls()
    with pytest.raises(VariableAlreadySet, match="same variable"):
        later.add(scope, spec("a", slot="a"))
    assert not scope.variables


def test_a_refused_call_changes_nothing() -> None:
    scope, later = session(calls=2), LazyCalls()
    later.add(scope, spec("a"))
    with pytest.raises(VariableAlreadySet):
        later.add(scope, spec("b"), [VariableSpec("a", "set")])
    later.add(scope, spec("c", "missing"))
    with pytest.raises(TooLarge):
        later.add(scope, spec("d"))
    assert set(scope.variables) == {"a", "c"}
    with pytest.raises(UnknownVariable):
        later.join(scope, ["c"])
    assert later.count == 2
    assert len(later.join(scope, ["a"]).calls) == 1


def test_a_cycle_is_refused_whichever_output_is_requested() -> None:
    scope, later = session(), LazyCalls()
    later.add(scope, spec("a"))
    scope.add_variable("b")
    later.add(scope, spec("c", "b"))
    later.add(scope, spec("b", "c"))
    for name in ("b", "c", "b"):
        with pytest.raises(Cycle):
            later.join(scope, [name])
    assert len(later.join(scope, ["a"]).calls) == 1
