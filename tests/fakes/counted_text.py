"""Texts that count the operations on them, so that a test can bound work independently of the speed of the machine."""

from typing import Any


class CountedText(str):
    """Text that counts the characters that its slices and concatenations copy, and those of its parts.

    Methods such as `join`, `strip` and `replace`, and modules such as `re` and `json`, return plain texts, whose copies
    are not counted.
    """

    __slots__ = ("_counts",)

    def __new__(cls, text: str, counts: list[int] | None = None) -> "CountedText":
        """`counts`: list of the sizes of all copies, which a text shares with its parts."""
        counted = super().__new__(cls, text)
        counted._counts = [] if counts is None else counts
        return counted

    @property
    def copied(self) -> int:
        """Number of characters that were copied."""
        return sum(self._counts)

    def _copy(self, text: str) -> "CountedText":
        self._counts.append(len(text))
        return CountedText(text, self._counts)

    def __getitem__(self, key: Any) -> "CountedText":
        return self._copy(super().__getitem__(key))

    def __add__(self, other: str) -> "CountedText":
        return self._copy(super().__add__(other))

    def __radd__(self, other: str) -> "CountedText":
        return self._copy(other + str(self))


class CountedKey(str):
    """Text that counts how often any text of this class is compared, in `comparisons` of the class. A test resets it.

    Python does not compare an object with itself in lists and dictionaries.
    """

    comparisons = 0

    def __eq__(self, other: object) -> bool:
        CountedKey.comparisons += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__
