"""Wrong, missing and huge values to put into every place of a request."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

_NESTED: Any = {"a": 1}
for _ in range(150):
    _NESTED = {"a": [_NESTED]}
MISSING = object()
"""Stands for a field or an element that is left out."""
VALUES: list[Any] = [
    *(MISSING, None, True, -1, 2**70, 0.5, "", "x" * 900_000, "\ud800", "<<x>>", [], {}),
    *([[]], [{}] * 600, ["x"] * 20_000, {f"k{number}": 1 for number in range(2_000)}, _NESTED),
    *({"type": "message"}, {"id": "msg_1"}),
]
MAX_CALLS = 200_000
"""Maximum number of function calls for a request with one of the values. Most requests take about 1,000, and those with
20,000 elements less than 50,000. If each of 600 elements is compared with all others, there are 360,000."""


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the paths of all values in the request."""
    if path:
        yield path
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, inner in steps:
        yield from places(inner, (*path, step))


def with_value(request: Mapping[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """Return a copy of the request with another value at a place."""
    body: Any = copy.deepcopy(request)
    holder = body
    for step in path[:-1]:
        holder = holder[step]
    if value is MISSING:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    result: dict[str, Any] = body
    return result
