"""Tests of gateway/config/url_pattern.py: URLs of clients, and the tricks in them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.url_pattern import BadUrl, is_public_address, parse_url, parse_url_pattern


@pytest.mark.parametrize(
    ("pattern", "url", "accepted"),
    [
        ("https://example.com/mcp", "https://example.com/mcp", True),
        ("https://example.com/mcp", "https://EXAMPLE.com:443/mcp", True),
        ("https://example.com/mcp", "https://example.com./mcp", True),
        ("https://example.com/mcp", "http://example.com/mcp", False),
        ("https://example.com/mcp", "https://example.com:8443/mcp", False),
        ("https://example.com/mcp", "https://example.com/mcp/x", False),
        ("https://example.com/mcp/*", "https://example.com/mcp/x?y=1", True),
        ("https://*.example.com/*", "https://a.example.com/x", True),
        ("https://*.example.com/*", "https://evil.com/.example.com/x", False),
        ("https://*.example.com/*", "https://evil.com?.example.com/", False),
        ("http://127.0.0.1:9/*", "http://127.0.0.1:9/mcp", True),
        ("http://[::1]:9/*", "http://[::1]:9/mcp", True),
    ],
)
def test_a_pattern_accepts_urls_of_its_parts(pattern: str, url: str, accepted: bool) -> None:
    assert parse_url_pattern(pattern).accepts(parse_url(url)) is accepted


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/",
        "file:///etc/passwd",
        "//example.com/",
        "https://user@example.com/",
        "https://example.com@evil.com/",
        "https://exam\tple.com/",
        "https://example.com\\@evil.com/",
        "https://example.com/#x",
        "https://example.com/a/../b",
        "https://example.com/a/%2e%2e/b",
        "https://example.com/a%2fb",
        "https://example.com//x",
        "https://exämple.com/",
        "https://*/",
        "https://",
        "https://example.com:99999/",
        "https://[::1/",
        "https://example.com/" + "x" * 3_000,
    ],
)
def test_malformed_and_ambiguous_urls_are_refused(url: str) -> None:
    with pytest.raises(BadUrl):
        parse_url(url)


@given(st.text())
def test_any_text_is_refused_or_parsed(text: str) -> None:
    try:
        found = parse_url(text)
    except BadUrl:
        return
    assert found.scheme in ("http", "https")
    assert "@" not in found.host


@pytest.mark.parametrize("pattern", ["x", "ftp://x/", "https:///x", "https://u@x/", "https://x:y/"])
def test_a_malformed_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="url_patterns"):
        parse_url_pattern(pattern)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("1.1.1.1", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("192.168.0.1", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("::ffff:127.0.0.1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_only_addresses_of_the_internet_are_public(address: str, public: bool) -> None:
    assert is_public_address(address) is public


def test_only_a_pattern_without_a_star_names_its_host() -> None:
    assert parse_url_pattern("http://localhost:1/*").names_the_host
    assert not parse_url_pattern("http://*.local/").names_the_host
