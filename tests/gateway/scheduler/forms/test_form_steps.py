"""gateway/scheduler/forms/form_steps.py: the steps that all forms share."""

import pytest

from gateway.graph.call import CallSpec
from gateway.graph.errors import Failure
from gateway.graph.forms.form import Branch, Condition, Map
from gateway.graph.references import Reference
from gateway.graph.segments import Input
from gateway.graph.session import Addition, Session
from gateway.graph.variable import VariableState
from gateway.runtime.fair_gate import FairGate
from gateway.scheduler.forms.form_steps import SKIPPED, FormSteps
from gateway.scheduler.input_reader import CallFailed
from tests.gateway.graph.test_session import put, session, spec

YES = Condition([Input(Reference("verdict"), "if.value")], "json", "true")


def branch_steps(graph: Session) -> FormSteps:
    form = Branch(YES, [spec(output="a"), spec(output="b")], [])
    call = graph.add(CallSpec(model="", form=form, more_outputs=["a"], output="b", where="calls.0"))
    return FormSteps(call, _start, FairGate(), FairGate())


async def _start(session: Session, addition: Addition) -> None:
    """Start nothing: these tests end the calls themselves."""


async def test_a_full_session_is_found_before_calls_are_made() -> None:
    graph = session(calls=1)
    call = graph.add(CallSpec(model="", form=Map("[]", "item", spec(), 10), output="results"))
    steps = FormSteps(call, _start, FairGate(), FairGate())
    with pytest.raises(CallFailed, match="has 1 calls; the maximum is 1"):
        steps.check_calls(1)


async def test_a_condition_fails_with_its_place() -> None:
    graph = session()
    put(graph, "verdict", "[" * 70_000)
    with pytest.raises(CallFailed, match=r"calls\.0\.if: the value is"):
        await branch_steps(graph).decide(YES, "if")


async def test_outputs_get_their_values_if_another_one_fails() -> None:
    graph = session()
    put(graph, "verdict", "true")
    steps = branch_steps(graph)
    good, bad = (graph.add(spec(output=name)).output for name in ("good", "bad"))
    bad.fail(Failure("step_failed", "no", "call_x"))
    good.complete()
    first, last = steps.call.outputs
    with pytest.raises(CallFailed, match=r"step_failed\): no"):
        await steps.copy_all([(bad, first), (good, last)])
    assert (first.state, last.state) == (VariableState.FAILED, VariableState.READY)


async def test_a_skipped_output_is_no_failure() -> None:
    graph = session()
    put(graph, "verdict", "true")
    steps = branch_steps(graph)
    first, last = steps.call.outputs
    await steps.skip(first, None, "because")
    await steps.skip(last, "default", "because")
    await steps.copy_all([])
    assert first.failure is not None
    assert (first.failure.code, last.value, last.failure) == (SKIPPED, "default", None)
