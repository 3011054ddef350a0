"""Warnings in the header of an answer: parts of a request that were accepted and do not apply."""

from collections.abc import Mapping

from aiohttp import web

WARNING_HEADER = "x-myna-warning"
"""Header of an answer with the warnings of its request."""

WARNINGS = web.RequestKey("warnings", str)
"""Warnings of a request so far, or empty."""
_LONGEST = 1_000
"""Maximum length of the header, in characters."""


def add_warning(request: web.Request, warning: str) -> None:
    """Add a warning to the header of the answer, unless it is empty. Call it before the answer begins."""
    if warning:
        before = request.get(WARNINGS)
        request[WARNINGS] = f"{before}; {warning}" if before else warning


def warning_headers(request: web.Request) -> Mapping[str, str]:
    """Return the header with the warnings of a request; none if there are none."""
    text = request.get(WARNINGS)
    if not text:
        return {}
    shown = "".join(character if " " <= character <= "~" else "?" for character in text[: _LONGEST + 1])
    return {WARNING_HEADER: shown if len(shown) <= _LONGEST else shown[: _LONGEST - 3] + "..."}
