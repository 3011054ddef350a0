"""The live page at /ui: static files, which show the server through its API."""

import functools
import hashlib
from dataclasses import dataclass
from importlib import resources

from aiohttp import ETag, hdrs, web

from gateway.errors import RequestError

routes = web.RouteTableDef()

OPEN_ROUTES = ("/ui", "/ui/{file}")
"""Routes that need no API key: a browser loads the files before its user can enter one."""

_INDEX = "index.html"
_CONTENT_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
"""Content types by suffix. Other files of the folder are not served."""
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
)
"""Content security policy: nothing from elsewhere, nothing inline, no frame, and no text that becomes markup."""
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    hdrs.CACHE_CONTROL: "no-cache",
}


@dataclass(frozen=True)
class StaticFile:
    """One file of the page."""

    content: bytes
    content_type: str
    etag: ETag


@functools.cache
def static_files() -> dict[str, StaticFile]:
    """Return the files of the page by name. They are read once."""
    files = {}
    for path in (resources.files("gateway") / "web").iterdir():
        content_type = _CONTENT_TYPES.get("." + path.name.rpartition(".")[2])
        if content_type is not None:
            content = path.read_bytes()
            # weak: a compressed answer has the same tag
            etag = ETag(hashlib.sha256(content).hexdigest()[:32], is_weak=True)
            files[path.name] = StaticFile(content, content_type, etag)
    return files


@routes.get("/ui")
async def page(request: web.Request) -> web.Response:
    """Return the page."""
    return _answer(request, _INDEX)


@routes.get("/ui/{file:[^/]*}")
async def file(request: web.Request) -> web.Response:
    """Return a file of the page. Raises RequestError 404 if there is none."""
    name = request.match_info["file"]
    if not name:  # the page's own links are relative to /ui
        return web.Response(status=308, headers={hdrs.LOCATION: "../ui", **_HEADERS})
    return _answer(request, name)


def _answer(request: web.Request, name: str) -> web.Response:
    found = static_files().get(name)
    if found is None:
        raise RequestError(404, "the page has no such file", code="unknown_route")
    known = request.if_none_match or ()
    if any(tag.value in (found.etag.value, "*") for tag in known):
        response = web.Response(status=304, headers=_HEADERS)
    else:
        response = web.Response(body=found.content, content_type=found.content_type, charset="utf-8", headers=_HEADERS)
    response.etag = found.etag
    return response
