"""Treatment of keywords that cannot be enforced."""

from enum import Enum
from typing import Any


class Enforcement(Enum):
    """Treatment of a keyword that cannot be enforced."""

    STRICT = "strict"
    """The schema is refused."""
    BEST_EFFORT = "best effort"
    """The keyword is dropped. Integers that no float represents, and schemas without a valid value, are refused."""
    LENIENT = "lenient"
    """The keyword is dropped. No schema is refused."""


class Unenforceable(ValueError):
    """The schema cannot be enforced. The message names the keyword."""


class RefusalPolicy:
    """Decision whether a keyword that cannot be enforced makes the schema unenforceable, or is dropped."""

    def __init__(self, enforcement: Enforcement) -> None:
        self.is_strict = enforcement is Enforcement.STRICT
        self.is_lenient = enforcement is Enforcement.LENIENT
        self.dropped: dict[str, None] = {}
        """Keywords that were dropped, in order."""

    def refuse(self, keyword: str, why: str = "is not supported") -> None:
        """Raise Unenforceable for a keyword, if the enforcement is strict; otherwise the caller drops it."""
        if self.is_strict:
            raise Unenforceable(f"{keyword} {why}")
        self.dropped[keyword] = None

    def refuse_number(self, keyword: str, value: Any) -> None:
        """Raise Unenforceable for a number that a float cannot represent, unless the enforcement is lenient.

        Best effort must not generate another number instead.
        """
        if not self.is_lenient:
            raise Unenforceable(f"{keyword}: {value} cannot be represented exactly; integers up to 2^53 always can")
        self.dropped[keyword] = None
