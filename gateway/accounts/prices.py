"""Prices of tokens, by model, as the settings specify them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from gateway.graph.call import Call
from gateway.runtime.name_pattern import matches

_MILLION = 1_000_000
_MAX_PRICE = 1e9
"""Highest price of a million tokens. With it, no sum of costs can become infinite."""


@dataclass(frozen=True, slots=True)
class Price:
    """Price of a million tokens, by kind. `cached`: prompt tokens that were in the cache."""

    prompt: float
    cached: float
    completion: float

    def cost(self, prompt: int, cached: int, completion: int) -> float:
        """Return the cost of tokens. `prompt` includes `cached`."""
        return ((prompt - cached) * self.prompt + cached * self.cached + completion * self.completion) / _MILLION


_FREE = Price(0.0, 0.0, 0.0)


class Prices:
    """Prices of all models. A model without a price costs nothing."""

    def __init__(self, prices: Mapping[str, Price]) -> None:
        """`prices`: by model, or by pattern in which `*` stands for any text. The name of a model goes before patterns,
        and longer patterns go before shorter ones."""
        self._prices = {name: price for name, price in prices.items() if "*" not in name}
        patterns = [(name, price) for name, price in prices.items() if "*" in name]
        self._patterns = sorted(patterns, key=lambda item: len(item[0]), reverse=True)
        self._has_prices = bool(prices)
        self._find = lru_cache(10_000)(self._find_pattern)

    def __bool__(self) -> bool:
        """Return whether any model has a price."""
        return self._has_prices

    def of(self, model: str) -> Price:
        """Return the price of a model."""
        return self._prices.get(model) or (self._find(model) if self._patterns else _FREE)

    def cost_of_call(self, call: Call) -> float:
        """Return the cost of a call so far."""
        return self.of(call.model or call.spec.model).cost(*call.spent_tokens) if self._has_prices else 0.0

    def _find_pattern(self, model: str) -> Price:
        for pattern, price in self._patterns:
            if matches(pattern, model):
                return price
        return _FREE


def parse_price(text: str) -> Price:
    """Return the price for `PROMPT/COMPLETION` or `PROMPT/CACHED/COMPLETION`, each for a million tokens. Without
    `CACHED`, cached tokens cost as much as others. Raises ValueError if the text has another form."""
    try:
        numbers = [float(number) for number in text.split("/")]
    except ValueError:
        numbers = []
    if len(numbers) not in (2, 3) or not all(0 <= number <= _MAX_PRICE for number in numbers):
        raise ValueError(
            f"the price {text!r} is not PROMPT/COMPLETION or PROMPT/CACHED/COMPLETION, each a number from 0 to "
            f"{_MAX_PRICE:.0f}"
        )
    return Price(numbers[0], numbers[-2], numbers[-1])
