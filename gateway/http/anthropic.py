"""Requests of clients of Anthropic's API, and errors in its format."""

import re

from aiohttp import web

from compat.anthropic import AnthropicError, AnthropicErrorBody, AnthropicErrorDetails
from gateway.errors import RequestError

VERSION_HEADER = "anthropic-version"
"""Header that every client of Anthropic's API sends."""
_MESSAGES = "/v1/messages"
_OVERLOADED = 529
"""Anthropic's status for a server that accepts no work now. Its clients try again."""
_STATUSES = {503: _OVERLOADED}
"""Statuses that Anthropic's API has instead of others."""
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    _OVERLOADED: "overloaded_error",
}
_WINDOW = re.compile(r"(?:window|context (?:length|size))\D{0,40}?(\d{1,12})")
"""Size of the window in the errors of engines and upstream servers."""
_NUMBER = re.compile(r"\d{1,12}")


def speaks_anthropic(request: web.BaseRequest) -> bool:
    """Return whether the client of a request expects answers in Anthropic's format: on its routes, and on others if the
    request has the header `anthropic-version`."""
    path = request.rel_url.raw_path  # the router has it already; `request.path` decodes it again
    return (path.startswith(_MESSAGES) and path[len(_MESSAGES) :][:1] in ("", "/")) or VERSION_HEADER in request.headers


def request_id_headers(request: web.BaseRequest, request_id: str) -> dict[str, str]:
    """Return the headers of an answer that have the request's id: `x-request-id`, and Anthropic's name for it."""
    if speaks_anthropic(request):
        return {"x-request-id": request_id, "request-id": request_id}
    return {"x-request-id": request_id}


def anthropic_status(error: RequestError) -> int:
    """Return the status of an error in Anthropic's API."""
    return _STATUSES.get(error.status, error.status)


def anthropic_error_body(error: RequestError, message: str, param: str | None, id: str | None) -> AnthropicErrorBody:
    """Return the body of an error's answer in Anthropic's format.

    `message`, `param`: those of the error, cut to their maximum lengths. `id`: the request's id, if it is known.
    """
    if error.code == "context_length_exceeded":
        message = _overflow_message(message)
    status = anthropic_status(error)
    type = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    details = AnthropicErrorDetails(error.code, param)
    return AnthropicErrorBody(error=AnthropicError(type, message, details), request_id=id)


def _overflow_message(message: str) -> str:
    """Return Anthropic's message for a prompt that exceeds the window. Its clients parse the numbers.

    `message`: the error of an engine or of an upstream server. If it does not have the numbers, it is quoted.
    """
    window = _WINDOW.search(message)
    if window is not None:
        rest = message[: window.start(1)] + message[window.end(1) :]
        number = _NUMBER.search(rest)
        if number is not None:
            tokens, maximum = int(number[0]), int(window[1])
            # the prompt did not fit, so its length exceeds the maximum, for example because the answer needs a token
            return f"prompt is too long: {tokens} tokens > {min(maximum, tokens - 1)} maximum"
    return f"prompt is too long: {message}"
