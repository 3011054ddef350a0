"""Duration of a step, operation by operation: `python -m bench.step`. It runs the engine alone, without a server.

Operations are called and timed one by one. The last lines are of steps as served, in which all layers are one call: the
time besides the model (planning, arrays, sampling, detokenisation), and the whole.
"""

import random
import time
from collections import defaultdict
from collections.abc import Callable
from statistics import median
from typing import Any

from engine import Engine, EngineConfig, SamplingParams

_OPERATIONS = ("linear", "linear_float32", "add_rms_norm", "rope_and_store", "attention", "gated")
_STEPS = 40


class _Clock:
    """Milliseconds by operation, for every call of an object's methods."""

    def __init__(self, target: Any, operations: tuple[str, ...] = _OPERATIONS) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        for name in operations:
            setattr(target, name, self._timed(name, getattr(target, name)))

    def _timed(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            result = method(*arguments, **named)
            self.spent[name] += 1e3 * (time.perf_counter() - began)
            return result

        return call


def _tokens(count: int) -> list[int]:
    return [random.randrange(300, 40_000) for _ in range(count)]


def _steps(engine: Engine) -> list[float]:
    """Return the milliseconds of each step until there is no work left."""
    durations = []
    while engine.has_work:
        began = time.perf_counter()
        engine.step()
        durations.append(1e3 * (time.perf_counter() - began))
    return durations


def _decode(
    engine: Engine, streams: int, before: int, timed: Callable[[], None], *, shared: bool = False
) -> list[float]:
    """Return the milliseconds of steps that decode `streams` streams, each after `length` tokens, which may be
    shared."""
    prompt = _tokens(before)
    for context in range(streams):
        engine.fill(context, (prompt if shared else _tokens(before)) + _tokens(20))
        while engine.has_work:
            engine.step()
    for context in range(streams):
        engine.generate(context, SamplingParams(temperature=0.0, max_tokens=_STEPS, ignore_eos=True))
    timed()
    durations = _steps(engine)
    for context in range(streams):
        engine.free_context(context)
    return durations


def _prefill(engine: Engine, tokens: int, timed: Callable[[], None]) -> list[float]:
    """Return the milliseconds of the steps of a prompt's prefill."""
    engine.fill(0, _tokens(tokens))
    timed()
    durations = _steps(engine)
    engine.free_context(0)
    return durations


Case = Callable[[Engine, Callable[[], None]], list[float]]
CASES: dict[str, Case] = {
    "1 stream": lambda engine, timed: _decode(engine, 1, 40, timed),
    "8 streams": lambda engine, timed: _decode(engine, 8, 40, timed),
    "32 streams": lambda engine, timed: _decode(engine, 32, 40, timed),
    "16 behind 600": lambda engine, timed: _decode(engine, 16, 600, timed),
    "16 behind 2,000": lambda engine, timed: _decode(engine, 16, 2000, timed),
    "… one prefix": lambda engine, timed: _decode(engine, 16, 2000, timed, shared=True),
    "prefill 2,000": lambda engine, timed: _prefill(engine, 2000, timed),
}


def main() -> None:
    """Print the table: milliseconds per step, means for operations, medians for whole steps."""
    engine = Engine(EngineConfig(kv_tokens=65_536, speculation="off"))
    whole, apart = {}, {}
    timed = _Clock(engine.decoder, ("forward",))
    for name, case in CASES.items():
        steps = case(engine, timed.spent.clear)
        whole[name] = median(steps)
        apart[name] = (sum(steps) - timed.spent["forward"]) / len(steps)
    engine.decoder._fused = None
    clock = _Clock(engine.decoder.kernels)
    rows: dict[str, dict[str, float]] = {}
    for name, case in CASES.items():
        steps = len(case(engine, clock.spent.clear))
        rows[name] = {operation: spent / steps for operation, spent in clock.spent.items()}
    print(f"{'ms a step':<18}" + "".join(f"{name:>16}" for name in CASES))
    for operation in _OPERATIONS:
        print(f"{operation:<18}" + "".join(f"{rows[name].get(operation, 0.0):>16.2f}" for name in CASES))
    print(f"{'beside forward':<18}" + "".join(f"{apart[name]:>16.2f}" for name in CASES))
    print(f"{'whole step':<18}" + "".join(f"{whole[name]:>16.2f}" for name in CASES))


if __name__ == "__main__":
    main()
