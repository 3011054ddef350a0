"""Choice of the engine for a call."""

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter

from gateway.engines.protocol import Engine
from gateway.graph.call import Call

Placement = Callable[[Call, Sequence[Engine], Mapping[Engine, int]], Engine]
"""Function that chooses an engine. `place` is the default."""

CONTEXT_TOKENS = 12
"""Cached prompt tokens that outweigh one more context on an engine."""
_SAMPLE = 16
"""Number of engines that are compared, if there are many; each call compares others. It finds an idle engine nearly as
often as a comparison of all."""
_load = attrgetter("load")


def place(call: Call, engines: Sequence[Engine], prefix_tokens: Mapping[Engine, int]) -> Engine:
    """Return an idle engine, or a busier one that holds much of the prompt's beginning.

    Among equals, it prefers the engine that produced most of the call's inputs. `prefix_tokens`: the engines that
    received a beginning of the prompt before, with its tokens.
    """
    producers = [source.producer.engine for source in call.inputs.values() if source.producer is not None]

    def cost(engine: Engine) -> tuple[float, int]:
        cached = prefix_tokens.get(engine, 0) * engine.tokens_per_unit
        return engine.load * CONTEXT_TOKENS - cached, -producers.count(engine.name)

    if len(engines) > _SAMPLE:
        first = call.arrival * _SAMPLE % len(engines)
        sample = [*engines[first : first + _SAMPLE], *engines[: max(0, first + _SAMPLE - len(engines))]]
        engines = [min(sample, key=_load), *(engine for engine in prefix_tokens if engine.is_ready)]
    return min(engines, key=cost)
