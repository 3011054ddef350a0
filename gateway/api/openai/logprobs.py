"""Convert log probabilities into the format of answers."""

from collections.abc import Iterable
from typing import Any

from compat.openai import TokenLogprob, TopLogprob
from gateway.graph.variable import Piece
from gateway.prompts.served_models import ServedModel

_MIN_LOGPROB = -9999.0
"""Log probability of impossible tokens, as in OpenAI's API."""


def token_logprobs(model: ServedModel, pieces: Iterable[Piece]) -> list[TokenLogprob]:
    """Return the log probabilities of the pieces' tokens."""
    return [_token_logprob(model, entry) for piece in pieces for entry in piece.logprobs]


def _token_logprob(model: ServedModel, entry: Any) -> TokenLogprob:
    top = [TopLogprob(*_with_text(model, token, logprob)) for token, logprob in entry.top]
    return TokenLogprob(*_with_text(model, entry.token, entry.logprob), top)


def _with_text(model: ServedModel, token: int | bytes, logprob: float) -> tuple[str, float, list[int]]:
    data = model.token_bytes(token)
    return data.decode(errors="replace"), finite(logprob), list(data)


def finite(logprob: float) -> float:
    """Return the log probability, but at least `_MIN_LOGPROB`.

    A token that a grammar or a bias forbids has minus infinity, which JSON cannot express."""
    return max(_MIN_LOGPROB, logprob)
