"""Patterns of one schema, compiled with RE2."""

import re

from gateway.runtime import regex
from gateway.runtime.schema_checker.work_budget import NoVerdict, WorkBudget

_COMPILE_UNITS = 200
"""Units that compiling a pattern costs, besides those for its instructions."""
_WORK_PER_UNIT = 5_000
"""Product of a pattern's instructions and a text's bytes that counts as a unit of work."""
_SPACES = re.compile(r"\\[sS]")


class PatternCache:
    """Owner of the compiled patterns."""

    def __init__(self) -> None:
        self._patterns: dict[str, regex.Pattern | None] = {}
        """Compiled patterns; None for those that RE2 does not have."""

    def matches(self, expression: object, text: str, budget: WorkBudget) -> bool:
        """Return whether a pattern occurs in a text. Raises NoVerdict if RE2 does not support the pattern or would read
        it differently."""
        if not isinstance(expression, str):
            raise NoVerdict("a pattern is not a string")
        pattern = self._compile(expression, budget)
        try:
            budget.spend(1 + pattern.programsize * len(text.encode()) // _WORK_PER_UNIT)
            if not text.isascii() and _SPACES.search(expression):
                raise NoVerdict("RE2 and ECMA-262 differ in their white space characters")
            return regex.search(pattern, 0, text) is not None
        except (regex.BadPattern, UnicodeError) as error:
            raise NoVerdict(str(error)) from None

    def _compile(self, expression: str, budget: WorkBudget) -> regex.Pattern:
        if expression not in self._patterns:
            budget.spend(_COMPILE_UNITS)
            try:
                compiled = self._patterns[expression] = regex.compiled(expression)
                budget.spend(compiled.programsize // 4)
            except (regex.BadPattern, UnicodeError):
                self._patterns[expression] = None  # cached: RE2 may need 5 ms to reject a pattern
        pattern = self._patterns[expression]
        if pattern is None:
            raise NoVerdict("RE2 does not have this pattern")
        return pattern
