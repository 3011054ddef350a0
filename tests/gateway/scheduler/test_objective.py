"""gateway/scheduler/objective.py"""

from hypothesis import given
from hypothesis import strategies as st

from gateway.graph.call import Call, CallState, Objective
from gateway.scheduler.objective import objective, objectives_of
from tests.gateway.graph.test_session import session, spec


def test_calls_that_a_waiting_client_needs_have_objective_latency() -> None:
    graph = session()
    first = graph.add(spec(output="a", deferred=True))
    second = graph.add(spec("a", output="b", deferred=True))
    aside = graph.add(spec(output="c", deferred=True))
    assert {objective(call) for call in (first, second, aside)} == {Objective.THROUGHPUT}
    second.output.latency_subscribers += 1
    assert objective(second) is objective(first) is Objective.LATENCY
    assert objective(aside) is Objective.THROUGHPUT
    second.state = CallState.DONE
    assert objective(first) is Objective.THROUGHPUT, "an ended consumer waits for nothing"


def test_the_objective_of_the_client_has_precedence() -> None:
    graph = session()
    call = graph.add(spec(objective=Objective.THROUGHPUT))
    call.output.latency_subscribers += 1
    assert objective(call) is Objective.THROUGHPUT
    assert objective(graph.add(spec(objective=Objective.LATENCY, deferred=True))) is Objective.LATENCY


def by_definition(call: Call) -> Objective:
    """Return the objective by a visit of all consumers of the call."""
    if call.spec.objective is not None:
        return call.spec.objective
    readers = [reader for variable in call.outputs for reader in variable.consumers if not reader.state.is_final]
    soon = any(variable.latency_subscribers for variable in call.outputs)
    soon = soon or any(by_definition(reader) is Objective.LATENCY for reader in readers)
    return Objective.LATENCY if soon else Objective.THROUGHPUT


OBJECTIVES = st.sampled_from([None, None, None, Objective.LATENCY, Objective.THROUGHPUT])
NODES = st.tuples(st.sets(st.integers(0, 9), max_size=3), OBJECTIVES, st.integers(0, 5), st.integers(0, 5))


@given(st.lists(NODES, max_size=10))
def test_objectives_of_many_calls_equal_those_computed_one_by_one(
    nodes: list[tuple[set[int], Objective | None, int, int]],
) -> None:
    graph = session()
    calls: list[Call] = []
    for number, (reads, own, latency_subscribers, ended) in enumerate(nodes):
        names = [f"v{read}" for read in reads if read < number]
        calls.append(graph.add(spec(*names, output=f"v{number}", objective=own, deferred=True)))
        calls[-1].output.latency_subscribers += latency_subscribers == 0
        if ended == 0:
            calls[-1].set_state(CallState.DONE)
    assert objectives_of(calls) == {call.id: by_definition(call) for call in calls}
    assert {call.id: objective(call) for call in calls} == objectives_of(calls)
