"""Compress answers with gzip if the client accepts it and the answer is large. aiohttp decompresses request bodies."""

from aiohttp import hdrs, web

_MIN_BYTES = 2048
"""Size from which an answer is compressed, in bytes."""


def compress(request: web.Request, response: web.StreamResponse) -> None:
    """Compress an answer that is complete and large. Streams stay uncompressed: each event has to arrive
    immediately."""
    if isinstance(response, web.Response) and isinstance(response.body, bytes) and len(response.body) >= _MIN_BYTES:
        response.headers.add(hdrs.VARY, hdrs.ACCEPT_ENCODING)
        if _accepts_gzip(request.headers.get(hdrs.ACCEPT_ENCODING, "")):
            response.enable_compression(web.ContentCoding.gzip)


def _accepts_gzip(accepted: str) -> bool:
    """Return whether the header names gzip, with a weight other than 0."""
    for item in accepted.lower().split(","):
        coding, _, weight = item.partition(";")
        if coding.strip() in ("gzip", "*"):
            return weight.replace(" ", "").removeprefix("q=").strip("0.") != "" or not weight
    return False
