"""Regular expressions that come from clients, run by RE2: in linear time, and within bounded memory.

RE2 has no look-around and no back-references: these are what make other engines take exponential time.
"""

from typing import Any

import re2

LONGEST_PATTERN = 4_096
"""Characters of a pattern."""

_MEMORY = 512 << 10
"""Bytes that a compiled pattern and its automaton may take. The library keeps 128 patterns."""

_MOST_WORK = 1_000_000_000
"""Most instructions of a pattern times bytes of a text: about half a second."""

_OPTIONS = re2.Options()
_OPTIONS.max_mem = _MEMORY
_OPTIONS.log_errors = False

Pattern = Any
"""A compiled pattern; the library's class has no public name."""


class BadPattern(ValueError):
    """The pattern cannot be run, or not on this text; the message says why."""


def compiled(pattern: str) -> Pattern:
    """Return the pattern, compiled within the bounds. Raises BadPattern."""
    if len(pattern) > LONGEST_PATTERN:
        raise BadPattern(f"a pattern has at most {LONGEST_PATTERN} characters; this one has {len(pattern)}")
    try:
        return re2.compile(pattern, _OPTIONS)
    except re2.error as error:
        (why,) = error.args
        words = why.decode(errors="replace") if isinstance(why, bytes) else str(why)
        raise BadPattern(f"RE2 cannot run this pattern, which has its own syntax: {words}") from None


def search(pattern: Pattern, group: int, text: str) -> str | None:
    """Return the group of the first match in the text; None if there is none. It may take a second: run it in a thread.

    Raises BadPattern if the search would take too long.
    """
    work = pattern.programsize * len(text.encode())
    if work > _MOST_WORK:
        raise BadPattern(f"this pattern is too large for a text of {len(text)} characters")
    found = pattern.search(text)
    matched: str | None = None if found is None else found.group(group)
    return matched
