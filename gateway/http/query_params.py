"""What a URL says behind its question mark."""

from collections.abc import Sequence

from aiohttp import web

from gateway.errors import RequestError


def flag(request: web.Request, name: str) -> bool:
    """Whether it is true; left out, it is not. Raises RequestError."""
    return choice(request, name, ("false", "true")) == "true"


def choice(request: web.Request, name: str, choices: Sequence[str]) -> str:
    """One of several; left out, the first. Raises RequestError."""
    value = request.query.get(name, choices[0])
    if value not in choices:
        listed = " or ".join(repr(one) for one in sorted(choices, reverse=True))
        raise RequestError(400, f"{name} is {listed}", code="invalid_value", param=name)
    return value


def integer(request: web.Request, name: str, default: int, *, least: int, most: int = 1 << 53) -> int:
    """A number in these bounds; left out, the default. Raises RequestError."""
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
        raise RequestError(400, f"{name} is a whole number {bounds}", code="invalid_value", param=param)
    return int(text)
