"""Add CORS headers. Without them, a browser refuses a page of another origin access to answers."""

from collections.abc import Awaitable, Callable, Collection

from aiohttp import hdrs, web

from gateway.accounts.limits import limit_headers

_EXPOSED = ", ".join(("x-request-id", "request-id", "Retry-After", *limit_headers.NAMES))
_MAX_AGE_SECONDS = 3600


def cors_headers(origins: Collection[str]) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    """Return a handler for `on_response_prepare` that allows pages of these origins to read answers. `*` allows all."""
    allows_all = "*" in origins

    async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
        origin = request.headers.get(hdrs.ORIGIN)
        headers = response.headers
        if not allows_all:
            headers.add(hdrs.VARY, hdrs.ORIGIN)
        if origin is None or not (allows_all or origin in origins):
            return
        headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = "*" if allows_all else origin
        headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _EXPOSED
        if request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers:
            headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = headers.get(hdrs.ALLOW, "")
            # `*` would not cover the Authorization header, so the answer repeats the requested names
            requested = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "")
            headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = requested
            headers[hdrs.ACCESS_CONTROL_MAX_AGE] = str(_MAX_AGE_SECONDS)

    return add_headers
