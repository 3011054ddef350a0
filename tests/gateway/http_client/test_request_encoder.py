"""Tests of gateway/http_client/request_encoder.py: the bytes that a server receives."""

from urllib.parse import urlsplit

import pytest

from gateway.http_client.pool import ConnectionPool
from gateway.http_client.request_encoder import RequestEncoder
from tests.gateway.http_client.raw_server import FRAMED, raw_server, sends


async def test_the_bytes_of_a_request() -> None:
    async with raw_server(sends(FRAMED["by length"])) as server:
        url = server.url.replace("://", "://user:p%40ss@") + "/behind a proxy/"
        pool = ConnectionPool(url, {"X-Key": "k"})
        await (await pool.post("/v1/x", b'{"a":1}')).read()
        await (await pool.request("GET", "/v1/models")).read()
        await pool.close()
    port = server.url.rpartition(":")[2]
    headers = f"Host: localhost:{port}\r\nUser-Agent: myna\r\nAccept: */*\r\nAuthorization: Basic dXNlcjpwQHNz\r\nX-Key: k\r\n"
    body = 'Content-Type: application/json\r\nContent-Length: 7\r\n\r\n{"a":1}'
    assert server.requests[0].decode() == f"POST /behind%20a%20proxy/v1/x HTTP/1.1\r\n{headers}{body}"
    assert server.requests[1].decode() == f"GET /behind%20a%20proxy/v1/models HTTP/1.1\r\n{headers}\r\n"


@pytest.mark.parametrize("value", ["two\r\nlines", "zero\0", "naïve"])
def test_an_invalid_header_value_is_rejected(value: str) -> None:
    with pytest.raises(ValueError, match="Authorization"):
        ConnectionPool("http://localhost", {"Authorization": value})


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://127.0.0.1:8000/v1", "127.0.0.1:8000"),
        ("http://[::1]:8000", "[::1]:8000"),
        ("https://example.com", "example.com"),
    ],
)
def test_the_host_header(url: str, host: str) -> None:
    base = urlsplit(url)
    request = RequestEncoder(base, base.hostname or "", {}).encode("GET", "/models", b"")
    assert f"\r\nHost: {host}\r\n" in request.decode()
    assert request.startswith(f"GET {base.path}/models HTTP/1.1\r\n".encode())
