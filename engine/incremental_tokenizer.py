"""Tokenise a text that arrives in pieces."""

from engine.tokenizer import Tokenizer

_WORK = 8
"""Characters that are searched for stable tokens for each character that arrives, at most."""
_FREE_WORK = 4_096
"""Characters that are searched in any case, so that short texts are searched after each piece."""


class IncrementalTokenizer:
    """Owner of the part of a growing ordinary text whose tokens may still change.

    Joined, the tokens that `push` and `finish` return equal `Tokenizer.encode` of the whole text. The time is linear in
    the length of the text, however it is divided into pieces.
    """

    def __init__(self, tokenizer: Tokenizer, *, adds_space: bool = False) -> None:
        """`adds_space`: put a space before the text if it is not empty; see `Tokenizer.adds_space`."""
        self._tokenizer = tokenizer
        self._adds_space = adds_space
        self._work_left = _FREE_WORK
        self._pieces: list[str] = []
        self.pending_length = 0
        """Length of `pending`, in characters."""

    @property
    def pending(self) -> str:
        """Text whose tokens may still change."""
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""

    @property
    def is_due(self) -> bool:
        """Whether so much text has arrived since the last search for stable tokens that another one may be made."""
        return 0 < self.pending_length <= self._work_left

    def append(self, text: str) -> None:
        """Add text at the end."""
        if not text:
            return
        if self._adds_space:
            text, self._adds_space = " " + text, False
        self._pieces.append(text)
        self.pending_length += len(text)
        self._work_left += _WORK * len(text)

    def take_stable(self, max_tokens: int | None = None) -> list[int]:
        """Return the tokens that no later text can change, and remove their text from `pending`; none if that is not
        due. See `Tokenizer.encode_stable` for `max_tokens`."""
        if not self.is_due:
            return []
        self._work_left -= self.pending_length
        tokens, rest = self._tokenizer.encode_stable(self.pending, max_tokens)
        self._pieces, self.pending_length = [rest], len(rest)
        return tokens

    def push(self, text: str) -> list[int]:
        """Add text at the end, and return the tokens that have become stable."""
        self.append(text)
        return self.take_stable()

    def rest(self, max_tokens: int | None = None) -> list[int]:
        """Return the tokens of `pending`, which is the end of the text. See `Tokenizer.encode` for `max_tokens`."""
        return self._tokenizer.encode(self.pending, max_tokens=max_tokens)

    def finish(self, max_tokens: int | None = None) -> list[int]:
        """Return the remaining tokens of the text, which has ended. See `Tokenizer.encode` for `max_tokens`."""
        tokens = self.rest(max_tokens)
        self._pieces, self.pending_length = [], 0
        return tokens
