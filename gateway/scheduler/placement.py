"""Which engine takes a call."""

from collections.abc import Sequence

from gateway.engines.base import Engine
from gateway.graph.call import Call


def place(call: Call, engines: Sequence[Engine]) -> Engine:
    """The engine that made most of the call's inputs, if it is no busier than the others; else the idlest."""
    held = [source.producer.engine for source in call.inputs.values() if source.producer is not None]
    return min(engines, key=lambda engine: (engine.load, -held.count(engine.name)))
