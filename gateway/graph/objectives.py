"""What each call is for. A first cut: who waits is served soon, and so is what they wait for."""

from collections.abc import Iterator

from gateway.graph.call import Call, Objective


def objective(call: Call) -> Objective:
    """What the client said, or what follows from who waits.

    Latency if a client wants its outputs soon or a call of objective latency needs them; throughput if nobody waits
    yet.
    """
    stack, seen = [call], {call.id}
    while stack:
        at = stack.pop()
        if at.spec.objective is Objective.LATENCY:
            return Objective.LATENCY
        if at.spec.objective is Objective.THROUGHPUT:
            continue
        if any(variable.hurried for variable in at.makes):
            return Objective.LATENCY
        for reader in _readers(at):
            if reader.id not in seen and not reader.state.final:
                seen.add(reader.id)
                stack.append(reader)
    return Objective.THROUGHPUT


def _readers(call: Call) -> Iterator[Call]:
    """The calls that need what this one makes."""
    yield from call.followers
    for variable in call.makes:
        yield from variable.consumers


def sources(call: Call) -> Iterator[Call]:
    """The calls that this one directly waits for, finished or not."""
    if call.leader is not None:
        yield call.leader
    for variable in call.inputs.values():
        if variable.producer is not None:
            yield variable.producer
