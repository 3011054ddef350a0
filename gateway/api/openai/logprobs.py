"""Convert log probabilities into the format of answers."""

from collections.abc import Iterable
from typing import Any

from compat.openai import TokenLogprob, TopLogprob
from gateway.graph.variable import Piece
from gateway.prompts.served_models import ServedModel

_LEAST = -9999.0
"""Log probability of impossible tokens, as in OpenAI's API."""


def token_logprobs(model: ServedModel, pieces: Iterable[Piece]) -> list[TokenLogprob]:
    """Return the log probabilities of the pieces' tokens."""
    return [_told(model, entry) for piece in pieces for entry in piece.logprobs]


def _told(model: ServedModel, entry: Any) -> TokenLogprob:
    top = [TopLogprob(*_named(model, token, logprob)) for token, logprob in entry.top]
    return TokenLogprob(*_named(model, entry.token, entry.logprob), top)


def _named(model: ServedModel, token: int | bytes, logprob: float) -> tuple[str, float, list[int]]:
    data = model.token_bytes(token)
    return data.decode(errors="replace"), finite(logprob), list(data)


def finite(logprob: float) -> float:
    """Return a finite log probability: that of a token that a grammar or a bias forbids is minus infinity."""
    return max(_LEAST, logprob)
