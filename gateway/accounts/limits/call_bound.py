"""Upper bounds of what a call may use, which are reserved until its end."""

from collections.abc import Callable, Mapping, Sequence

from gateway.accounts.prices import Prices
from gateway.graph.call import CallSpec
from gateway.graph.segments import Input, Segment, Slot, Text

_UNKNOWN_TOKENS = 4_096
"""Assumed maximum of an answer without `max_tokens`, and of a value that is not known yet, if the model's window is
unknown."""
_Bound = tuple[int, float]


class CallBounds:
    """Computes upper bounds of the tokens and the cost of calls."""

    def __init__(self, window_of: Callable[[str], int | None], prices: Prices) -> None:
        """`window_of` returns the window of a model in tokens; None if it is unknown."""
        self._window_of = window_of
        self._prices = prices if prices else None

    def of_call(self, spec: CallSpec) -> _Bound:
        """Return the tokens and the cost that the call has at most.

        A prompt counts the tokens of its known texts; without a tokenizer, each character counts as a token. Values
        that the prompt refers to, and an answer without `max_tokens`, count as the rest of the model's window. If the
        window is unknown, a default of the call counts like a known text.
        """
        if not spec.model:
            return 0, 0.0
        tokens, cost = self._of_prompt_and_answer(spec.model, spec.segments, spec.defaults)
        for fallback in spec.fallbacks:
            more_tokens, more_cost = self._of_prompt_and_answer(fallback.model, fallback.segments, spec.defaults)
            tokens, cost = max(tokens, more_tokens), max(cost, more_cost)
        return tokens, cost

    def _of_prompt_and_answer(self, model: str, segments: Sequence[Segment], defaults: Mapping[str, str]) -> _Bound:
        prompt = completion = unknown = excess = 0
        for segment in segments:
            if type(segment) is Text:  # most segments; their weights are estimates of time
                prompt += len(segment.tokens)
            elif isinstance(segment, Slot):
                length = segment.sampling.max_tokens
                if length is None:
                    unknown += 1
                else:
                    completion += length
            elif isinstance(segment, Input):
                unknown += 1
                if defaults:
                    excess += max(0, len(defaults.get(segment.reference.name, "")) - _UNKNOWN_TOKENS)
            else:
                prompt += segment.length
        window = self._window_of(model)
        if window is None:
            prompt += excess
            completion += unknown * _UNKNOWN_TOKENS
        else:
            prompt = prompt if prompt < window else window
            rest = window - prompt
            completion = rest if unknown or completion > rest else completion
        return prompt + completion, 0.0 if self._prices is None else self._cost(model, prompt, completion)

    def _cost(self, model: str, prompt: int, completion: int) -> float:
        return 0.0 if self._prices is None else self._prices.of(model).cost(prompt, 0, completion)

    def of_prompt(self, model: str, tokens: int) -> _Bound:
        """Return tokens and cost of a request that generates nothing, such as an embedding."""
        return tokens, self._cost(model, tokens, 0)
