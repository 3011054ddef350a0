"""Patterns of URLs that clients may name, such as `https://*.example.com/mcp/*`."""

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from gateway.runtime.name_pattern import matches

_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[a-z0-9._*-]{1,253}|[0-9a-f:.]{2,45}")
_PATH = re.compile(r"[A-Za-z0-9/._~!$&'()*+,;=:@%?-]*")
_TRICKS = re.compile(r"(?:^|/)\.{1,2}(?:/|$)|%(?:2e|2f|5c|00)|//", re.IGNORECASE)
"""Parts of a path with which it names another one."""
_MAX_URL = 2_000
"""Maximum length of a URL of a client, in characters."""


class BadUrl(ValueError):
    """The URL of a client is malformed or not allowed. The message says why."""


@dataclass(frozen=True)
class UrlPattern:
    """Scheme, host, port and path of allowed URLs. `*` in host and path stands for any text."""

    text: str
    scheme: str
    host: str
    port: int
    path: str

    @property
    def names_the_host(self) -> bool:
        """Return whether the pattern has one host only. Then this host may be on a private network."""
        return "*" not in self.host

    def accepts(self, url: "PlainUrl") -> bool:
        """Return whether a URL fits the pattern."""
        return (
            self.scheme == url.scheme
            and self.port == url.port
            and matches(self.host, url.host)
            and matches(self.path, url.path)
        )


@dataclass(frozen=True)
class PlainUrl:
    """A URL without userinfo, fragment and detours in its path. `path`: with the query."""

    scheme: str
    host: str
    port: int
    path: str


def parse_url(text: str) -> PlainUrl:
    """Return the parts of a URL. Raises BadUrl if it is malformed, or could be read in two ways."""
    if len(text) > _MAX_URL or not text.isascii() or not text.isprintable() or any(mark in text for mark in " \\#"):
        raise BadUrl("the URL is too long or contains characters that are not allowed")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise BadUrl("the URL is malformed") from None
    if parts.scheme not in _PORTS:
        raise BadUrl("the URL is not http:// or https://")
    if "@" in parts.netloc:
        raise BadUrl("the URL contains a user name")
    host = (parts.hostname or "").rstrip(".")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not _HOST.fullmatch(host) or "*" in host or not _PATH.fullmatch(path) or _TRICKS.search(parts.path):
        raise BadUrl("the URL is malformed")
    return PlainUrl(parts.scheme, host, _PORTS[parts.scheme] if port is None else port, path)


def parse_url_pattern(text: str) -> UrlPattern:
    """Return the pattern for a text of the settings. Raises ValueError if it has another form."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError(f"url_patterns: {text!r} is malformed") from None
    host = (parts.hostname or "").rstrip(".")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    is_valid = parts.scheme in _PORTS and _HOST.fullmatch(host) and _PATH.fullmatch(path) and not parts.fragment
    if not is_valid or "@" in parts.netloc:
        raise ValueError(f"url_patterns: {text!r} is not http(s)://HOST[:PORT]/PATH, in which * stands for any text")
    return UrlPattern(text, parts.scheme, host, _PORTS[parts.scheme] if port is None else port, path)


def is_public_address(address: str) -> bool:
    """Return whether an IP address is one of the public internet: not of this machine, a private network, a link or a
    group."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if found.teredo is not None:
            return False
        if inner is not None:
            found = inner
        elif found in _NAT64:
            found = ipaddress.IPv4Address(int(found) & 0xFFFF_FFFF)
    return found.is_global and not found.is_multicast


_NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""Addresses that stand for IPv4 addresses behind a translator."""
