"""Parse and check query parameters, and headers with the same kinds of values."""

from collections.abc import Sequence

from aiohttp import web

from gateway.errors import RequestError


def bool_param(request: web.Request, name: str) -> bool:
    """Return a boolean parameter, false by default. Raises RequestError if it is neither `true` nor `false`."""
    return parse_bool(request.query.get(name), name, param=name)


def choice_param(request: web.Request, name: str, choices: Sequence[str]) -> str:
    """Return a parameter that must be one of `choices`, by default the first. Raises RequestError for other values."""
    return _parse_choice(request.query.get(name), name, choices, param=name)


def int_param(request: web.Request, name: str, default: int, *, minimum: int, maximum: int = 1 << 53) -> int:
    """Return an integer parameter within the bounds, or the default. Raises RequestError for other values."""
    return parse_integer(request.query.get(name), name, default, minimum=minimum, maximum=maximum, param=name)


def parse_bool(text: str | None, name: str, *, param: str | None = None) -> bool:
    """Return the boolean in the text of a query or header; false if the text is None. Raises RequestError for other
    values.

    `name`: for the error's message. `param`: the error's `param`.
    """
    return _parse_choice(text, name, ("false", "true"), param=param) == "true"


def _parse_choice(text: str | None, name: str, choices: Sequence[str], *, param: str | None) -> str:
    value = choices[0] if text is None else text
    if value not in choices:
        listed = " or ".join(repr(item) for item in sorted(choices, reverse=True))
        raise RequestError(400, f"{name} must be {listed}", code="invalid_value", param=param)
    return value


def parse_integer(
    text: str | None, name: str, default: int, *, minimum: int, maximum: int = 1 << 53, param: str | None = None
) -> int:
    """Return the integer in the text of a query, header or path; the default if the text is None. Raises RequestError
    for other values.

    `name`: for the error's message. `param`: the error's `param`.
    """
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 17 and minimum <= int(text) <= maximum):
        bounds = f"from {minimum} to {maximum}" if maximum < 1 << 53 else f"of at least {minimum}"
        raise RequestError(400, f"{name} must be an integer {bounds}", code="invalid_value", param=param)
    return int(text)
