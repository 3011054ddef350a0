"""Cache results for texts, with a bound on the length of the texts and not only on the number of entries."""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, TypeVar, cast

_Function = TypeVar("_Function", bound=Callable[..., Any])


def cache_short(entries: int, max_length: int) -> Callable[[_Function], _Function]:
    """Return a decorator that caches the results of a function of a text and of other hashable arguments.

    It caches at most `entries` results, and only for texts of at most `max_length` characters: with longer ones a
    client could fill the memory.
    """

    def decorate(compute: _Function) -> _Function:
        cached = lru_cache(entries)(compute)

        @wraps(compute)
        def look_up(text: str, *more: Any) -> Any:
            return compute(text, *more) if len(text) > max_length else cached(text, *more)

        return cast("_Function", look_up)

    return decorate
