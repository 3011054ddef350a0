"""Answers as gzip, where the client takes it and it is worth it. Request bodies are unpacked by aiohttp."""

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

_WORTH = 2048
"""Bytes from which an answer is packed."""


@web.middleware
async def compression(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Packs whole answers. Streams stay as they are: each event has to arrive at once."""
    response = await handler(request)
    if isinstance(response, web.Response) and isinstance(response.body, bytes) and len(response.body) >= _WORTH:
        response.headers.add(hdrs.VARY, hdrs.ACCEPT_ENCODING)
        if _takes_gzip(request.headers.get(hdrs.ACCEPT_ENCODING, "")):
            response.enable_compression(web.ContentCoding.gzip)
    return response


def _takes_gzip(accepted: str) -> bool:
    """Whether the header names gzip, with a weight other than 0."""
    for one in accepted.lower().split(","):
        coding, _, weight = one.partition(";")
        if coding.strip() in ("gzip", "*"):
            return weight.replace(" ", "").removeprefix("q=").strip("0.") != "" or not weight
    return False
