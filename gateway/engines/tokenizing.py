"""Tokenise values, for engines that accept tokens."""

from engine.tokenizer import Tokenizer
from gateway.engines.protocol import ContextRefused
from gateway.runtime.executors import offload

_LONG_TEXT = 2_000
"""Length in characters from which texts are tokenised in a thread."""


async def tokens_of(text: str, tokenizer: Tokenizer, window: int | None) -> list[int]:
    """Return the tokens of a value. Raises ContextRefused if a long value is larger than the window by itself."""
    if len(text) < _LONG_TEXT:
        return tokenizer.encode(text)
    return await offload(lambda: _encode_bounded(text, tokenizer, window), len(text))


def _encode_bounded(text: str, tokenizer: Tokenizer, window: int | None) -> list[int]:
    if window is None:
        return tokenizer.encode(text)
    count = tokenizer.minimum_tokens(text) if len(text) > window else 0
    if count < window:
        tokens = tokenizer.encode(text, max_tokens=window)
        count = len(tokens)
    if count < window:
        return tokens
    message = f"this model's window is {window} tokens, but a value in the prompt has at least {count} tokens"
    raise ContextRefused("context_length_exceeded", message)
