"""Random ids that are unique and cannot be guessed."""

import os
import secrets

_BATCH = 64
"""Number of ids for each read of the operating system's random source."""
_DIGITS = 32
"""Hexadecimal digits of an id, 4 bits each."""
_fresh: list[str] = []
os.register_at_fork(after_in_child=_fresh.clear)  # a forked child would otherwise issue the same ids


def new_id(digits: int) -> str:
    """Return a random id of `digits` hexadecimal digits, at most 32. It can be called from any thread.

    The random source of the operating system is read for many ids at a time, because a read costs more than an id.
    """
    try:
        return _fresh.pop()[:digits]
    except IndexError:
        random_digits = secrets.token_hex(_BATCH * _DIGITS // 2)
        first, *others = (random_digits[begin : begin + _DIGITS] for begin in range(0, len(random_digits), _DIGITS))
        _fresh.extend(others)
        return first[:digits]
