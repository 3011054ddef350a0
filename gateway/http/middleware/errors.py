"""Outermost middleware: it sets request ids, formats errors as OpenAI or Anthropic do, and compresses large answers."""

import logging
import re
import time

from aiohttp import ClientConnectionResetError, hdrs, web
from aiohttp.typedefs import Handler

from compat.anthropic import AnthropicErrorBody
from compat.openai import Error, ErrorBody
from gateway.errors import RequestError
from gateway.graph.errors import GraphError
from gateway.graph.ids import new_id
from gateway.http.anthropic import anthropic_error_body, anthropic_status, request_id_headers, speaks_anthropic
from gateway.http.compression import compress
from gateway.http.json_body import BODY_BYTES, release_body
from gateway.http.rate_headers import LIMITS
from gateway.http.slow_client import SlowClient
from gateway.http.sse import REQUEST_ID
from gateway.http.warnings import WARNINGS, warning_headers
from gateway.runtime.json_codec import encode_json
from gateway.scheduler import Overloaded, Stopping
from gateway.telemetry.metrics import count_request

log = logging.getLogger("myna.http")

_CLIENT_CLOSED_REQUEST = 499
_LONGEST_MESSAGE = 2_000
"""Maximum length of an error's message, in characters."""
_LONGEST_PARAM = 200
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def error_body(error: RequestError) -> ErrorBody:
    """Return the body of an error's answer."""
    message, param = _texts(error)
    return ErrorBody(Error(message, error.type, param, error.code))


def anthropic_error(error: RequestError, request_id: str | None) -> AnthropicErrorBody:
    """Return the body of an error's answer in Anthropic's format."""
    return anthropic_error_body(error, *_texts(error), request_id)


def _texts(error: RequestError) -> tuple[str, str | None]:
    """Return message and param of an error, cut to their maximum lengths."""
    param = None if error.param is None else _truncate(error.param, _LONGEST_PARAM)
    return _truncate(str(error), _LONGEST_MESSAGE), param


def _truncate(text: str, length: int) -> str:
    """Return the text, cut to the length: an error may quote megabytes of a request."""
    return text if len(text) <= length else text[: length - 1] + "…"


def as_request_error(error: Exception) -> RequestError:
    """Return the error that a client receives for an exception. Log unexpected exceptions with their traceback."""
    match error:
        case RequestError():
            return error
        case GraphError():
            return RequestError.of_graph(error)
        case Overloaded():
            retry = {"Retry-After": str(error.retry_after)}
            return RequestError(429, str(error), code="overloaded", headers=retry)
        case Stopping():
            return RequestError(503, str(error), code="stopping", headers={"Retry-After": "5"})
        case web.HTTPRequestEntityTooLarge():
            return RequestError(413, error.text or "the request body is too large", code="too_large")
        case web.HTTPNotFound():
            message = (
                "there is no such route; the base URL ends with /v1 for OpenAI's clients, and has no /v1 for "
                "Anthropic's; /openapi.json lists all routes"
            )
            return RequestError(404, message, code="unknown_route")
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            message = f"{error.method} is not allowed here; allowed: {allowed}"
            return RequestError(405, message, code="method_not_allowed", headers={"Allow": allowed})
        case web.HTTPException():
            return RequestError(error.status, error.text or error.reason, code="http_error")
        case _:
            log.error("internal error while handling a request", exc_info=error)
            return RequestError(500, "internal error; the server's log has the details", code="internal_error")


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Add an x-request-id to every answer, turn exceptions into answers, and compress large ones."""
    offered = request.headers.get("x-request-id", "")
    request_id = offered if offered and _REQUEST_ID.fullmatch(offered) else f"req_{new_id(24)}"
    request[REQUEST_ID] = request_id
    request[WARNINGS] = ""
    request[LIMITS] = None
    request[BODY_BYTES] = 0  # as the warnings: a lookup of a key that is missing costs ten times as much
    began = time.monotonic()
    try:
        response = await handler(request)
    except (ClientConnectionResetError, SlowClient):
        response = web.Response(status=_CLIENT_CLOSED_REQUEST)  # for the metrics; it cannot be sent
    except Exception as raised:
        if isinstance(raised, web.HTTPMethodNotAllowed) and request.method == hdrs.METH_OPTIONS:
            return _options(raised, request)
        response = error_answer(
            as_request_error(raised), request
        )  # not in a variable: its traceback refers to this frame
    finally:
        release_body(request)
    if not response.prepared:
        response.headers["x-request-id"] = request_id
        if speaks_anthropic(request):
            response.headers["request-id"] = request_id
        if (limits := request[LIMITS]) is not None:
            limits.set_headers(response.headers)
        if request[WARNINGS]:
            response.headers.update(warning_headers(request))
        compress(request, response)
    route = request.match_info.route.resource
    name = "unknown" if route is None else route.canonical
    count_request(request.method, name, response.status)
    if log.isEnabledFor(logging.DEBUG):
        log.debug("%s %s %d %.1f ms", request.method, request.path, response.status, 1e3 * (time.monotonic() - began))
    return response


def error_answer(error: RequestError, request: web.BaseRequest) -> web.Response:
    """Return the HTTP response for an error, in the format of the request's API."""
    if speaks_anthropic(request):
        status, body = anthropic_status(error), encode_json(anthropic_error(error, request.get(REQUEST_ID)))
    else:
        status, body = error.status, encode_json(error_body(error))
    return web.Response(status=status, body=body, headers=error.headers, content_type="application/json")


def _options(answer: web.HTTPMethodNotAllowed, request: web.Request) -> web.Response:
    """Return the answer to OPTIONS on a route without a handler for it: the methods of the route."""
    allowed = ", ".join(sorted({*answer.allowed_methods, hdrs.METH_OPTIONS}))
    return web.Response(status=204, headers={hdrs.ALLOW: allowed, **request_id_headers(request, request[REQUEST_ID])})
