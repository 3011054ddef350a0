"""Run clients' regular expressions with RE2: in linear time and bounded memory.

Other engines backtrack, which can take exponential time. RE2 does not, so it has no look-around and no back-references.
"""

from typing import Any

import re2

LONGEST_PATTERN = 4_096
"""Maximum length of a pattern, in characters."""

_MEMORY = 512 << 10
"""Maximum memory of a compiled pattern and its automaton, in bytes. The library caches 128 patterns."""

_MAX_WORK = 200_000_000
"""Maximum product of a pattern's instructions and a text's bytes: usually a tenth of a second, at most about a second
for patterns whose automaton exceeds the memory."""

_OPTIONS = re2.Options()
_OPTIONS.max_mem = _MEMORY
_OPTIONS.log_errors = False

Pattern = Any
"""Type of a compiled pattern; the library's class has no public name."""


class BadPattern(ValueError):
    """The pattern cannot be run at all, or not on this text. The message says why."""


def compiled(pattern: str) -> Pattern:
    """Return the compiled pattern. Raises BadPattern if it is invalid or exceeds a limit."""
    if len(pattern) > LONGEST_PATTERN:
        raise BadPattern(f"a pattern has at most {LONGEST_PATTERN} characters; this one has {len(pattern)}")
    try:
        return re2.compile(pattern, _OPTIONS)
    except re2.error as error:
        (reason,) = error.args
        text = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        raise BadPattern(f"the pattern is not valid in RE2 syntax, or is too large: {text}") from None


def search(pattern: Pattern, group: int, text: str) -> str | None:
    """Search the text. Return what group number `group` of the first match captured; 0 stands for the whole match.

    Return None if there is no match, or if the group is not part of it. The search may take a second: run it in a
    thread. Raises BadPattern if it would take too long.
    """
    work = pattern.programsize * len(text.encode())
    if work > _MAX_WORK:
        raise BadPattern(f"this pattern is too large for a text of {len(text)} characters")
    found = pattern.search(text)
    matched: str | None = None if found is None else found.group(group)
    return matched
