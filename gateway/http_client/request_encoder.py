"""Encoding of requests to one server."""

import base64
from collections.abc import Mapping
from types import MappingProxyType
from urllib.parse import SplitResult, quote, unquote

_DEFAULT_HEADERS = {"User-Agent": "myna", "Accept": "*/*"}
"""Headers of every request. Some proxies accept no requests without them."""

_JSON = "application/json"
NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class RequestEncoder:
    """Owner of the encoded heads, by method and path."""

    def __init__(self, base: SplitResult, host: str, headers: Mapping[str, str]) -> None:
        """`base`: the server's base URL. `host`: its host name in ASCII. `headers`: headers of every request. Raises
        ValueError if a header contains characters that are not allowed."""
        self._prefix = quote(base.path.rstrip("/"), safe="/%:@!$&'()*+,;=~")
        address = f"[{host}]" if ":" in host else host
        own_headers = {"Host": address if base.port is None else f"{address}:{base.port}", **_DEFAULT_HEADERS}
        if base.username is not None:
            user = f"{unquote(base.username)}:{unquote(base.password or '')}"
            own_headers["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
        for name, value in {**own_headers, **headers}.items():
            if not value.isascii() or not value.isprintable():
                raise ValueError(f"the header {name} contains characters that are not allowed")
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in {**own_headers, **headers}.items())
        self._heads: dict[tuple[str, str], bytes] = {}

    def encode(
        self,
        method: str,
        path: str,
        content: bytes | None,
        content_type: str = _JSON,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> bytes:
        """Return the bytes of a request. `content`: the body, possibly none; None if it follows in chunks. `headers`:
        headers of this request alone. Raises ValueError if the content type contains characters that are not
        allowed."""
        head = self._heads.get((method, path))
        if head is None:
            head = f"{method} {self._prefix}{path} HTTP/1.1\r\n{self._headers}".encode()
            self._heads[method, path] = head
        if headers:
            for name, value in headers.items():
                head += f"{name}: {value}\r\n".encode("ascii")
        if content == b"":
            return head + b"\r\n"
        if content is not None and content_type == _JSON:  # most requests
            return head + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(content) + content
        if not content_type.isascii() or not content_type.isprintable():
            raise ValueError("the content type contains characters that are not allowed")
        kind = b"Content-Type: %b\r\n" % content_type.encode()
        if content is None:
            return head + kind + b"Transfer-Encoding: chunked\r\n\r\n"
        return head + kind + b"Content-Length: %d\r\n\r\n" % len(content) + content
