"""Which engine takes a call."""

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter

from gateway.engines.protocol import Engine
from gateway.graph.call import Call

Placement = Callable[[Call, Sequence[Engine], Mapping[Engine, int]], Engine]
"""See `place`."""

_CONTEXT_TOKENS = 12
"""So many tokens of prompt found in a cache make up for one context more on the engine."""
_LOOKED_AT = 16
"""Of many engines, so many are looked at for an idle one, others for each call: nearly as good as all of them."""
_load = attrgetter("load")


def place(call: Call, engines: Sequence[Engine], held: Mapping[Engine, int]) -> Engine:
    """An idle engine, or a busier one that holds much of the prompt's beginning; then one that holds most inputs.

    `held`: engines that were given the beginning of its prompt before, with how many tokens of it.
    """
    made = [source.producer.engine for source in call.inputs.values() if source.producer is not None]

    def cost(engine: Engine) -> tuple[float, int]:
        found = held.get(engine, 0) * engine.tokens_per_unit
        return engine.load * _CONTEXT_TOKENS - found, -made.count(engine.name)

    if len(engines) > _LOOKED_AT:
        first = call.arrival * _LOOKED_AT % len(engines)
        some = [*engines[first : first + _LOOKED_AT], *engines[: max(0, first + _LOOKED_AT - len(engines))]]
        engines = [min(some, key=_load), *(engine for engine in held if engine.ready)]
    return min(engines, key=cost)
