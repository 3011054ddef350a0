"""gateway/graph/objectives.py"""

from gateway.graph.call import CallState, Objective
from gateway.graph.objectives import objective
from tests.gateway.graph.test_session import session, spec


def test_whoever_is_waited_for_is_served_soon() -> None:
    graph = session()
    first = graph.add(spec(output="a", deferred=True))
    second = graph.add(spec("a", output="b", deferred=True))
    aside = graph.add(spec(output="c", deferred=True))
    assert {objective(call) for call in (first, second, aside)} == {Objective.THROUGHPUT}
    second.output.hurried += 1
    assert objective(second) is objective(first) is Objective.LATENCY
    assert objective(aside) is Objective.THROUGHPUT
    second.state = CallState.DONE
    assert objective(first) is Objective.THROUGHPUT, "an ended consumer waits for nothing"


def test_what_the_client_says_counts() -> None:
    graph = session()
    call = graph.add(spec(objective=Objective.THROUGHPUT))
    call.output.hurried += 1
    assert objective(call) is Objective.THROUGHPUT
    assert objective(graph.add(spec(objective=Objective.LATENCY, deferred=True))) is Objective.LATENCY
