"""Estimates of how long calls take, from their parameters and from earlier calls like them."""

import math
from typing import NamedTuple

from gateway.engines.protocol import Engine, StepTimes
from gateway.graph.call import Call, CallSpec
from gateway.graph.forms.form import Agent, Branch, Map, Repeat, ToolRun, form_name
from gateway.graph.segments import Input, Slot
from gateway.graph.variable import Variable

_UNBOUNDED_TOKENS = 256
"""Assumed number of tokens of an answer without `max_tokens`, until one was observed."""
_CHARACTERS_PER_TOKEN = 4
_LENGTH_SMOOTHING = 0.1
"""Weight of a new observation in the average length of answers."""
_PACE_SMOOTHING = 0.002
"""Weight of a new observation in the average durations of engine steps."""
_MAX_SHAPES = 10_000
"""Maximum number of shapes of calls whose answer lengths are remembered."""
_DEFAULT_PACE = StepTimes(row_seconds=0.001, step_seconds=0.010)
"""Assumed durations of engine steps, until an engine has reported its own."""


class Cost(NamedTuple):
    """Cost of a call whose inputs exist.

    `time`: duration from its first prompt row to its last token, in seconds. `work`: the engine time that it occupies,
    in seconds. Calls share steps, so `work` counts only a part of each. `prompt`: number of tokens of its prompt.
    """

    time: float = 0.0
    work: float = 0.0
    prompt: float = 0.0


class CostModel:
    """Owner of the observed lengths of answers and durations of steps. Estimates need not be accurate: only their order
    matters."""

    def __init__(self) -> None:
        self.pace: StepTimes | None = None
        """Average durations of engine steps. A fast moving average would reorder equal calls without a reason."""
        self._lengths: dict[tuple[object, ...], float] = {}
        """Average number of output tokens by shape of call."""

    def cost(self, call: Call, cached: int = 0) -> Cost:
        """Return the estimated cost of a call, if `cached` tokens of its prompt need not be computed.

        A generated token takes a step, which other calls share. How many is unknown, so its work is the geometric mean
        of a prompt row and a whole step.
        """
        if not call.spec.model:
            return Cost()
        prompt = output = 0.0
        for segment in call.spec.segments:
            if isinstance(segment, Slot):
                output += self._length(call, segment)
            elif not isinstance(segment, Input):
                prompt += segment.length
            elif (source := call.inputs.get(segment.reference.name)) is not None:
                prompt += self.tokens(source)
        pace = self.pace or _DEFAULT_PACE
        rows, step = max(0.0, prompt - cached) * pace.row_seconds, pace.step_seconds
        return Cost(rows + output * step, rows + output * math.sqrt(pace.row_seconds * step), prompt)

    def answer_tokens(self, call: Call) -> float:
        """Return the estimated number of tokens that the call generates."""
        return sum([self._length(call, slot) for slot in call.spec.slots])

    def used_seconds(self, call: Call) -> float:
        """Return the engine time that a call has used so far, in seconds. See `cost` for the work of a token."""
        prompt, cached, completion = call.spent_tokens
        pace = self.pace or _DEFAULT_PACE
        return max(0, prompt - cached) * pace.row_seconds + completion * math.sqrt(pace.row_seconds * pace.step_seconds)

    def observe(self, engine: Engine) -> None:
        """Update the average durations with those of an engine that is about to receive a call."""
        now, pace = engine.step_times, self.pace
        if now is None or pace is None:
            self.pace = now or pace
            return
        self.pace = StepTimes(
            pace.row_seconds + _PACE_SMOOTHING * (now.row_seconds - pace.row_seconds),
            pace.step_seconds + _PACE_SMOOTHING * (now.step_seconds - pace.step_seconds),
        )

    def tokens(self, variable: Variable) -> float:
        """Return the number of tokens of a variable's value, estimated if it does not exist yet."""
        if variable.value is not None:
            return len(variable.value) / _CHARACTERS_PER_TOKEN
        call = variable.producer
        if call is None:
            return 0.0
        if call.spec.form is not None:
            return self._lengths.get(_shape(call), _UNBOUNDED_TOKENS)
        if not call.spec.model:  # templates of templates are not followed: they may be many and deep
            parts = call.spec.parts or ()
            return sum(len(p) / _CHARACTERS_PER_TOKEN if isinstance(p, str) else _UNBOUNDED_TOKENS for p in parts)
        return sum(self._length(call, slot) for slot in call.spec.slots if slot.name in (None, variable.name))

    def _length(self, call: Call, slot: Slot) -> float:
        maximum = slot.sampling.max_tokens
        if maximum is not None and slot.sampling.ignore_eos:
            return maximum
        return self._lengths.get(_shape(call), _UNBOUNDED_TOKENS if maximum is None else maximum)

    def learn(self, call: Call) -> None:
        """Update the average length of answers from a finished call, or of the value of a form."""
        tokens, slots = float(call.usage.completion), len(call.spec.slots)
        if call.spec.form is not None:
            tokens, slots = len(call.output.value or "") / _CHARACTERS_PER_TOKEN, 1
        if call.leader is not None or not tokens or not slots:
            return
        shape, tokens_per_slot = _shape(call), tokens / slots
        known = self._lengths.get(shape)
        if known is not None or len(self._lengths) < _MAX_SHAPES:
            self._lengths[shape] = (
                tokens_per_slot
                if known is None
                else tokens_per_slot + (1 - _LENGTH_SMOOTHING) * (known - tokens_per_slot)
            )


def _shape(call: Call) -> tuple[object, ...]:
    """Return a key that is equal for calls from the same place in a program, whatever their texts are."""
    return _shape_of_spec(call.spec)


def _shape_of_spec(spec: CallSpec) -> tuple[object, ...]:
    match spec.form:
        case None:
            return (spec.model, *map(type, spec.segments), *[slot.sampling.max_tokens for slot in spec.slots])
        case Map(call=inner):
            return ("map", *_shape_of_spec(inner))
        case Branch(then=calls) | Repeat(calls=calls):
            return (form_name(spec.form), len(calls), *(_shape_of_spec(calls[0]) if calls else ()))
        case ToolRun(server, name):
            return ("tool", server, name)
        case Agent(model=model, max_turns=max_turns):
            return ("agent", model, max_turns)
