"""How long calls are likely to take: from what they ask for, and from what calls like them took."""

from gateway.graph.call import Call, Input, Slot, Text
from gateway.graph.variable import Variable

_UNBOUNDED_TOKENS = 256
"""Of an answer without `max_tokens`, until one has been seen."""
_CHARACTERS_PER_TOKEN = 4
_SMOOTHING = 0.1
_MAX_SHAPES = 10_000


class Estimates:
    """Owner of what was learned. Times are in seconds on an engine that does nothing else: what counts is how they
    compare."""

    def __init__(self) -> None:
        self.prompt_token = 0.001
        self.output_token = 0.015
        self._lengths: dict[tuple[object, ...], float] = {}
        """Output tokens by the shape of calls."""

    def cost(self, call: Call) -> float:
        """Seconds that the call will take, once its inputs are there."""
        if not call.spec.model:
            return 0.0
        prompt = output = 0.0
        for segment in call.spec.segments:
            match segment:
                case Text(tokens):
                    prompt += len(tokens)
                case Input(reference):
                    source = call.inputs.get(reference.name)
                    prompt += 0.0 if source is None else self.tokens(source)
                case Slot():
                    output += self._length(call, segment)
        return prompt * self.prompt_token + output * self.output_token

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
        times, usage = call.times, call.usage
        slots = len(call.spec.slots)
        if call.leader is not None or not usage.completion or not slots:
            return
        shape = _shape(call)
        if len(self._lengths) < _MAX_SHAPES or shape in self._lengths:
            made = usage.completion / slots
            self._lengths[shape] = made + (1 - _SMOOTHING) * (self._lengths.get(shape, made) - made)
        if times.first_token is not None and times.finished is not None and usage.completion > 1:
            took = (times.finished - times.first_token) / (usage.completion - 1)
            self.output_token += _SMOOTHING * (min(took, 4 * self.output_token) - self.output_token)
        computed = usage.prompt - usage.cached
        if times.queued is not None and times.first_token is not None and computed > 64:
            took = (times.first_token - times.queued) / computed
            self.prompt_token += _SMOOTHING * (min(took, 2 * self.prompt_token) - self.prompt_token)


def _shape(call: Call) -> tuple[object, ...]:
    """Calls of one place in a program are alike in these, whatever their texts."""
    spec = call.spec
    kinds = tuple(type(segment).__name__ for segment in spec.segments)
    return (spec.model, kinds, tuple(slot.sampling.max_tokens for slot in spec.slots))
