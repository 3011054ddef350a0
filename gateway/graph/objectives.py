"""What each call is for. A first cut: who waits is served soon, and so is what they wait for."""

from collections.abc import Iterator

from gateway.graph.call import Call, Objective


def objective(call: Call) -> Objective:
    """What the client said, or what follows from who waits.

    Latency if a client reads the output now or a call of objective latency consumes it; throughput if nobody
    waits yet.
    """
    stack, seen = [call], {call.id}
    while stack:
        at = stack.pop()
        if at.spec.objective is Objective.LATENCY or (at.spec.objective is None and at.output.readers):
            return Objective.LATENCY
        if at.spec.objective is Objective.THROUGHPUT:
            continue
        for consumer in at.output.consumers:
            if consumer.id not in seen and not consumer.state.final:
                seen.add(consumer.id)
                stack.append(consumer)
    return Objective.THROUGHPUT


def ancestors(call: Call) -> Iterator[Call]:
    """The call and every unfinished call it waits for, directly or not."""
    stack, seen = [call], {call.id}
    while stack:
        at = stack.pop()
        yield at
        for source in at.inputs.values():
            producer = source.producer
            if producer is not None and producer.id not in seen and not producer.state.final:
                seen.add(producer.id)
                stack.append(producer)
