"""Token healing: let a generated text begin inside what would be one token with the end of the prompt.

A prompt may end inside a word, or with a space. The tokens of `It is ` end with a token for the space. But the model
has learned ` an` as one token, and hardly ever continues after such a space. So the last tokens of the prompt are taken
back, and the generated text must begin with their text (Lundberg 2023, "The art of prompt design").
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.tokenizer import Tokenizer

_MAX_CHARACTER_BYTES = 4


class TokenTable:
    """The ordinary tokens of a vocabulary, sorted by their bytes. Immutable."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._control = frozenset(tokenizer.control.values())
        entries = [
            (text, token)
            for token in range(tokenizer.vocabulary)
            if (text := tokenizer.token_bytes(token)) and token not in self._control
        ]
        entries.sort()
        self._texts = [text for text, _ in entries]
        self._tokens = np.array([token for _, token in entries], dtype=np.int64)
        self._words = (tokenizer.vocabulary + 31) // 32
        self._max_bytes = max(map(len, self._texts), default=0)

    def take_back(self, tokens: Sequence[int]) -> tuple[int, bytes]:
        """Return how many tokens at the end of a prompt may be part of a longer token with the text after it, and their
        text, which is whole characters. At least one token of the prompt stays."""
        text, found, is_wanted = b"", (0, b""), False
        for position in range(len(tokens) - 1, 0, -1):
            token = tokens[position]
            token_text = self._tokenizer.token_bytes(token)
            if token in self._control or not token_text:
                break
            text = token_text + text
            is_wanted = is_wanted or self._has_longer(text)
            if is_wanted and _is_whole(text):
                found, is_wanted = (len(tokens) - position, text), False
            if len(text) >= self._max_bytes + _MAX_CHARACTER_BYTES:
                break
        return found

    def _has_longer(self, beginning: bytes) -> bool:
        """Return whether a token begins with these bytes and has more."""
        index = bisect_right(self._texts, beginning)
        return index < len(self._texts) and self._texts[index].startswith(beginning)

    def allowed_mask(self, text: bytes) -> NDArray[np.int32]:
        """Return the tokens with which a text can begin that begins with `text`, as bits, shape (words,).

        They are the tokens that begin with `text`, and those with which `text` begins. `text` is not empty.
        """
        begin = bisect_left(self._texts, text)
        end = begin + bisect_right(self._texts[begin:], text, key=lambda token_text: token_text[: len(text)])
        allowed = np.zeros(32 * self._words, dtype=bool)
        allowed[self._tokens[begin:end]] = True
        for length in range(1, len(text)):
            begin, end = bisect_left(self._texts, text[:length]), bisect_right(self._texts, text[:length])
            allowed[self._tokens[begin:end]] = True
        return np.packbits(allowed, bitorder="little").view(np.int32)


def _is_whole(text: bytes) -> bool:
    """Return whether the bytes are whole characters."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


class PrefixMatcher:
    """Owner of the rest of the text with which a generated text must begin. It is used like a `Matcher`."""

    failure: tuple[str, str] | None = None

    def __init__(self, table: TokenTable, tokenizer: Tokenizer, prefix: bytes) -> None:
        self._table = table
        self._tokenizer = tokenizer
        self._rest = prefix

    def allowed_mask(self) -> NDArray[np.int32]:
        """Return the tokens that may follow as bits, shape (words,)."""
        return self._table.allowed_mask(self._rest)

    def forced_tokens(self) -> list[int]:
        """Return no tokens: the model chooses where the tokens end."""
        return []

    def push(self, token: int) -> bool:
        """Consume the next token. Return False: the text never ends with the prefix."""
        self._rest = self._rest[len(self._tokenizer.token_bytes(token)) :]
        return False
