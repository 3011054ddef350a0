"""Names that nobody else has and nobody guesses."""

import os
import secrets

_AT_ONCE = 64
_DIGITS = 32
"""Hexadecimal, of 4 bits each."""
_fresh: list[str] = []
os.register_at_fork(after_in_child=_fresh.clear)  # which would draw the same


def new_id(digits: int) -> str:
    """So many random hexadecimal digits, at most 32. Safe from any thread.

    The system is asked for many at a time: it takes longer to answer than to make a name of it.
    """
    try:
        return _fresh.pop()[:digits]
    except IndexError:
        drawn = secrets.token_hex(_AT_ONCE * _DIGITS // 2)
        one, *others = (drawn[at : at + _DIGITS] for at in range(0, len(drawn), _DIGITS))
        _fresh.extend(others)
        return one[:digits]
