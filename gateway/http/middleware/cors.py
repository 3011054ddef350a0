"""Cross-origin requests from pages in a browser: refused by the browser unless the server names the page's origin."""

from collections.abc import Awaitable, Callable, Collection

from aiohttp import hdrs, web

_EXPOSED = "x-request-id, Retry-After"
_REMEMBERED_SECONDS = 3600


def cross_origin(origins: Collection[str]) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    """For `on_response_prepare`: tells browsers that pages of these origins, or of any with `*`, may read answers."""
    every = "*" in origins

    async def tell(request: web.Request, response: web.StreamResponse) -> None:
        origin = request.headers.get(hdrs.ORIGIN)
        headers = response.headers
        if not every:
            headers.add(hdrs.VARY, hdrs.ORIGIN)
        if origin is None or not (every or origin in origins):
            return
        headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = "*" if every else origin
        headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _EXPOSED
        if request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers:
            headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = headers.get(hdrs.ALLOW, "")
            # a key travels in a header that `*` does not cover
            wanted = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "")
            headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = wanted
            headers[hdrs.ACCESS_CONTROL_MAX_AGE] = str(_REMEMBERED_SECONDS)

    return tell
