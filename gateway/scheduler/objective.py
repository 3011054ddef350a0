"""What each call is for. A first cut: who waits is served soon, and so is what they wait for."""

from collections.abc import Iterable, Iterator

from gateway.graph.call import Call, Objective


def objective(call: Call) -> Objective:
    """Return the objective of one call; see `objectives_of`."""
    return objectives_of((call,))[call.id]


def objectives_of(calls: Iterable[Call]) -> dict[str, Objective]:
    """Return the objective of each call by its id: what the client said, or what follows from who waits.

    Latency if a client wants its outputs soon or a call of objective latency needs them; throughput if no client waits
    yet. It takes time linear in the edges of the graph.
    """
    known: dict[str, Objective] = {}
    for start in calls:
        stack: list[tuple[Call, Iterator[Call]]] = []
        _visit(start, known, stack)
        while stack:
            call, readers = stack[-1]
            reader = next(readers, None)
            if reader is None or known[call.id] is Objective.LATENCY:
                stack.pop()
                if stack and known[call.id] is Objective.LATENCY:
                    known[stack[-1][0].id] = Objective.LATENCY
            elif reader.state.final:
                continue
            elif reader.id not in known:
                _visit(reader, known, stack)
                if known[reader.id] is Objective.LATENCY:
                    known[call.id] = Objective.LATENCY
            elif known[reader.id] is Objective.LATENCY:
                known[call.id] = Objective.LATENCY
    return known


def _visit(call: Call, known: dict[str, Objective], stack: "list[tuple[Call, Iterator[Call]]]") -> None:
    """Note what a call itself says, and put it onto the stack if its readers have a say as well."""
    if call.id in known:
        return
    own = call.spec.objective
    if own is None:
        latency_subscribers = any(variable.latency_subscribers for variable in call.outputs)
        known[call.id] = Objective.LATENCY if latency_subscribers else Objective.THROUGHPUT
        if not latency_subscribers:
            stack.append((call, _readers(call)))
    else:
        known[call.id] = own


def _readers(call: Call) -> Iterator[Call]:
    """The calls that need what this one makes."""
    yield from call.followers
    for variable in call.outputs:
        yield from variable.consumers


def sources(call: Call) -> Iterator[Call]:
    """The calls that this one directly waits for, finished or not."""
    if call.leader is not None:
        yield call.leader
    for variable in call.inputs.values():
        if variable.producer is not None:
            yield variable.producer
