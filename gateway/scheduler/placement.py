"""Which engine takes a call."""

from collections.abc import Sequence

from gateway.engines.base import Engine
from gateway.graph.call import Call


def place(call: Call, engines: Sequence[Engine], holders: Sequence[str | None] = ()) -> Engine:
    """The idlest engine; of those, the one that holds most of the prompt's beginning, then most of its inputs.

    `holders`: for each border of the prompt's segments, the engine that was given the same beginning.
    """
    held = [source.producer.engine for source in call.inputs.values() if source.producer is not None]

    def beginning(engine: Engine) -> int:
        return max((at + 1 for at, name in enumerate(holders) if name == engine.name), default=0)

    return min(engines, key=lambda engine: (engine.load, -beginning(engine), -held.count(engine.name)))
