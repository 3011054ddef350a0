"""Objective of each call.

A client that waits for a variable needs low latency from its producer, and from all calls that the producer waits for.
"""

from collections.abc import Iterable, Iterator

from gateway.graph.call import Call, Objective


def objective(call: Call) -> Objective:
    """Return the objective of one call; see `objectives_of`."""
    return objectives_of((call,))[call.id]


def objectives_of(calls: Iterable[Call]) -> dict[str, Objective]:
    """Return the objective of each call by its id.

    If the client specified none, it is latency if an output has a latency subscriber or a call of objective latency
    needs an output, and throughput otherwise. The time is linear in the edges of the graph.
    """
    known: dict[str, Objective] = {}
    for start in calls:
        stack: list[tuple[Call, Iterator[Call]]] = []
        _visit(start, known, stack)
        while stack:
            call, dependents = stack[-1]
            dependent = next(dependents, None)
            if dependent is None or known[call.id] is Objective.LATENCY:
                stack.pop()
                if stack and known[call.id] is Objective.LATENCY:
                    known[stack[-1][0].id] = Objective.LATENCY
            elif dependent.state.is_final:
                continue
            elif dependent.id not in known:
                _visit(dependent, known, stack)
                if known[dependent.id] is Objective.LATENCY:
                    known[call.id] = Objective.LATENCY
            elif known[dependent.id] is Objective.LATENCY:
                known[call.id] = Objective.LATENCY
    return known


def _visit(call: Call, known: dict[str, Objective], stack: "list[tuple[Call, Iterator[Call]]]") -> None:
    """Record the objective that follows from the call alone. If its dependents (see `dependents_of`) can still change
    this objective, push the call and its dependents onto `stack`, for `objectives_of` to visit."""
    if call.id in known:
        return
    own = call.spec.objective
    if own is None:
        latency_subscribers = any(variable.latency_subscribers for variable in call.outputs)
        known[call.id] = Objective.LATENCY if latency_subscribers else Objective.THROUGHPUT
        if not latency_subscribers:
            stack.append((call, dependents_of(call)))
    else:
        known[call.id] = own


def dependents_of(call: Call) -> Iterator[Call]:
    """Yield the calls that need this call's outputs: its followers and its consumers."""
    yield from call.followers
    for variable in call.outputs:
        yield from variable.consumers


def sources(call: Call) -> Iterator[Call]:
    """Yield the calls that this call directly waits for, finished or not: its leader and the producers of its
    inputs."""
    if call.leader is not None:
        yield call.leader
    for variable in call.inputs.values():
        if variable.producer is not None:
            yield variable.producer
