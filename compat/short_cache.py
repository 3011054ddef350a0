"""A cache of what follows from texts, bounded by its memory and not only by its entries."""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, TypeVar, cast

_Function = TypeVar("_Function", bound=Callable[..., Any])


def cache_short(entries: int, longest: int) -> Callable[[_Function], _Function]:
    """Remember results of a function of a text, and of other hashable arguments.

    At most `entries` results are remembered, and only those for texts of at most `longest` characters: a client could
    fill the memory with longer ones.
    """

    def decorate(compute: _Function) -> _Function:
        remembered = lru_cache(entries)(compute)

        @wraps(compute)
        def look_up(text: str, *more: Any) -> Any:
            return compute(text, *more) if len(text) > longest else remembered(text, *more)

        return cast("_Function", look_up)

    return decorate
