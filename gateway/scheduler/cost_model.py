"""How long calls are likely to take: from what they ask for, and from what calls like them took."""

import math
from typing import NamedTuple

from gateway.engines.protocol import Engine, StepTimes
from gateway.graph.call import Call, Slot, Text
from gateway.graph.variable import Variable

_UNBOUNDED_TOKENS = 256
"""Of an answer without `max_tokens`, until one has been seen."""
_CHARACTERS_PER_TOKEN = 4
_SMOOTHING = 0.1
_SLOW = 0.002
_MAX_SHAPES = 10_000
_PACE = StepTimes(row_seconds=0.001, step_seconds=0.010)
"""Until an engine has said what its is."""


class Cost(NamedTuple):
    """Of a call whose inputs are there, in seconds. `time`: how long it takes from its first row to its last token.
    `work`: of the engine's time that is, of which steps that many calls share are a part."""

    time: float = 0.0
    work: float = 0.0


class CostModel:
    """Owner of what was learned. They need not be right: what counts is how they compare."""

    def __init__(self) -> None:
        self.pace: StepTimes | None = None
        """Of the engines, smoothed: were it to move fast, equal calls would change places for nothing."""
        self._lengths: dict[tuple[object, ...], float] = {}
        """Output tokens by the shape of calls."""

    def cost(self, call: Call, cached: int = 0) -> Cost:
        """What the call will take, if so many tokens of its prompt need not be computed.

        A token that is generated takes a step, which it shares with whoever generates then. As work it is something
        between a row and a whole step, since nobody knows with how many: their geometric mean is taken.
        """
        if not call.spec.model:
            return Cost()
        prompt = output = 0.0
        for segment in call.spec.segments:
            if isinstance(segment, Text):
                prompt += segment.length
            elif isinstance(segment, Slot):
                output += self._length(call, segment)
            elif (source := call.inputs.get(segment.reference.name)) is not None:
                prompt += self.tokens(source)
        pace = self.pace or _PACE
        rows, step = max(0.0, prompt - cached) * pace.row_seconds, pace.step_seconds
        return Cost(rows + output * step, rows + output * math.sqrt(pace.row_seconds * step))

    def observe(self, engine: Engine) -> None:
        """Of an engine that is given a call: what its steps take."""
        now, pace = engine.pace, self.pace
        if now is None or pace is None:
            self.pace = now or pace
            return
        self.pace = StepTimes(
            pace.row_seconds + _SLOW * (now.row_seconds - pace.row_seconds),
            pace.step_seconds + _SLOW * (now.step_seconds - pace.step_seconds),
        )

    def tokens(self, variable: Variable) -> float:
        """Of its value, known or not."""
        if variable.value is not None:
            return len(variable.value) / _CHARACTERS_PER_TOKEN
        call = variable.producer
        if call is None:
            return 0.0
        if not call.spec.model:  # not followed further: templates of templates may be many, and deep
            parts = call.spec.parts or ()
            return sum(len(p) / _CHARACTERS_PER_TOKEN if isinstance(p, str) else _UNBOUNDED_TOKENS for p in parts)
        return sum(self._length(call, slot) for slot in call.spec.slots if slot.name in (None, variable.name))

    def _length(self, call: Call, slot: Slot) -> float:
        most = slot.sampling.max_tokens
        if most is not None and slot.sampling.ignore_eos:
            return most
        return self._lengths.get(_shape(call), _UNBOUNDED_TOKENS if most is None else most)

    def learn(self, call: Call) -> None:
        """From a call that was done."""
        made, slots = call.usage.completion, len(call.spec.slots)
        if call.leader is not None or not made or not slots:
            return
        shape, each = _shape(call), made / slots
        known = self._lengths.get(shape)
        if known is not None or len(self._lengths) < _MAX_SHAPES:
            self._lengths[shape] = each if known is None else each + (1 - _SMOOTHING) * (known - each)


def _shape(call: Call) -> tuple[object, ...]:
    """Calls of one place in a program are alike in these, whatever their texts."""
    spec = call.spec
    return (spec.model, *map(type, spec.segments), *[slot.sampling.max_tokens for slot in spec.slots])
