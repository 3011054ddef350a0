"""Parse and check query parameters."""

from collections.abc import Sequence

from aiohttp import web

from gateway.errors import RequestError


def flag(request: web.Request, name: str) -> bool:
    """Return a boolean parameter, false by default. Raises RequestError if it is neither `true` nor `false`."""
    return choice(request, name, ("false", "true")) == "true"


def choice(request: web.Request, name: str, choices: Sequence[str]) -> str:
    """Return a parameter that must be one of `choices`, by default the first. Raises RequestError."""
    value = request.query.get(name, choices[0])
    if value not in choices:
        listed = " or ".join(repr(item) for item in sorted(choices, reverse=True))
        raise RequestError(400, f"{name} must be {listed}", code="invalid_value", param=name)
    return value


def integer(request: web.Request, name: str, default: int, *, least: int, most: int = 1 << 53) -> int:
    """Return an integer parameter from `least` to `most`, or the default. Raises RequestError."""
    return whole_number(request.query.get(name), name, default, least=least, most=most, param=name)


def whole_number(
    text: str | None, name: str, default: int, *, least: int, most: int = 1 << 53, param: str | None = None
) -> int:
    """Return the number in the text of a query, header or path; the default if the text is None. Raises RequestError.

    `name`: for the error's message. `param`: the error's `param`.
    """
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 17 and least <= int(text) <= most):
        bounds = f"from {least} to {most}" if most < 1 << 53 else f"of at least {least}"
        raise RequestError(400, f"{name} must be an integer {bounds}", code="invalid_value", param=param)
    return int(text)
