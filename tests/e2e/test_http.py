"""HTTP with browsers, proxies, slow clients and many clients."""

import asyncio
import gzip
import json
import resource
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2 as httpx
import psutil
import pytest
import trustme

from tests.fakes.checkpoints import write_tiny_llama
from tests.fakes.gateway_harness import MODEL, GatewayHarness

pytestmark = pytest.mark.waits

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
PAGE = "https://page.example"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"), window=256)


@pytest.fixture
def http(server: GatewayHarness) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.address, timeout=60) as http:
        yield http


def raw(server: GatewayHarness, *, buffer: int | None = None) -> socket.socket:
    """Open a socket to the server, without a client library."""
    connection = socket.socket()
    if buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    address = urlsplit(server.address)
    connection.connect((address.hostname, address.port))
    connection.settimeout(60)
    return connection


# bodies


def test_request_bodies_may_be_compressed(http: httpx.Client) -> None:
    body = gzip.compress(json.dumps(CHAT).encode())
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    assert http.post("/v1/chat/completions", content=body, headers=headers).status_code == 200
    broken = http.post("/v1/chat/completions", content=b"no gzip", headers=headers)
    assert broken.status_code == 400
    assert broken.json()["error"]["type"] == "invalid_request_error"


def test_the_limit_of_a_body_applies_to_its_decompressed_size(http: httpx.Client) -> None:
    bomb = gzip.compress(b" " * (40 << 20))
    assert len(bomb) < 1 << 20
    answer = http.post("/v1/chat/completions", content=bomb, headers={"Content-Encoding": "gzip"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


def test_large_answers_are_compressed_if_the_client_accepts_it(http: httpx.Client) -> None:
    path, body = "/tokenize", {"prompt": "word " * 1000}
    packed = http.post(path, json=body, headers={"Accept-Encoding": "gzip"})
    plain = http.post(path, json=body, headers={"Accept-Encoding": "identity"})
    refused = http.post(path, json=body, headers={"Accept-Encoding": "gzip;q=0"})
    assert packed.headers["Content-Encoding"] == "gzip"
    assert "Content-Encoding" not in plain.headers
    assert "Content-Encoding" not in refused.headers
    assert packed.json() == plain.json()
    assert int(packed.headers["Content-Length"]) < int(plain.headers["Content-Length"]) / 2
    assert "Accept-Encoding" in plain.headers["Vary"], "caches in between must know it"
    small = http.post(path, json={"prompt": "word"}, headers={"Accept-Encoding": "gzip"})
    assert "Content-Encoding" not in small.headers


def test_streams_are_not_compressed(http: httpx.Client) -> None:
    with http.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as answer:
        assert "Content-Encoding" not in answer.headers
        assert answer.read().endswith(b"data: [DONE]\n\n")


# methods and headers


def test_head_and_options(http: httpx.Client) -> None:
    head = http.head("/v1/models")
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["Content-Length"]) == len(http.get("/v1/models").content)
    options = http.options("/v1/chat/completions")
    assert (options.status_code, options.headers["Allow"]) == (204, "OPTIONS, POST")
    assert options.headers["x-request-id"]
    assert http.options("/v1/nothing").status_code == 404
    refused = http.put("/v1/chat/completions")
    assert (refused.status_code, refused.headers["Allow"]) == (405, "POST")


def test_valid_request_ids_are_returned(http: httpx.Client) -> None:
    assert http.get("/v1/models", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    for bad in ("a b", "x" * 129, "a%0d%0aSet-Cookie: b", "<script>"):
        given = http.get("/v1/models", headers={"x-request-id": bad}).headers["x-request-id"]
        assert given.startswith("req_")


@pytest.mark.parametrize("end", [b"\x00", b"\r", b"\r\n x", b"\x0b"])
def test_headers_cannot_be_injected(server: GatewayHarness, end: bytes) -> None:
    with raw(server) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nx-request-id: a" + end + b"Evil: b\r\n\r\n")
        answer = connection.recv(65536)
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 200", b"HTTP/1.0 400"))
    head, _, _ = answer.partition(b"\r\n\r\n")
    assert b"evil" not in head.lower()


def test_a_key_may_be_any_bytes(tiny: Path) -> None:
    with GatewayHarness("--model", str(tiny), "--api-key", "secret") as server, raw(server) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xe9\xff\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 401")


def test_one_connection_serves_many_requests(server: GatewayHarness) -> None:
    request = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    with raw(server) as connection:
        for _ in range(3):
            connection.sendall(request)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(request * 3)  # pipelined
        seen = b""
        while seen.count(b"HTTP/1.1 200") < 3:
            more = connection.recv(65536)
            assert more
            seen += more


# browsers


def test_cross_origin_requests_are_not_allowed_by_default(http: httpx.Client) -> None:
    answer = http.get("/v1/models", headers={"Origin": PAGE})
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_pages_of_allowed_origins_may_send_requests(tiny: Path) -> None:
    flags = ["--cors-origin", PAGE, "--cors-origin", "http://localhost:3000", "--api-key", "secret"]
    with GatewayHarness("--model", str(tiny), *flags) as server, httpx.Client(base_url=server.address) as http:
        asking = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
        before = http.options(
            "/v1/chat/completions", headers={**asking, "Access-Control-Request-Headers": "authorization,x-session-id"}
        )
        assert before.status_code == 204, "a browser sends preflight requests without the key"
        assert before.headers["Access-Control-Allow-Origin"] == PAGE
        assert "POST" in before.headers["Access-Control-Allow-Methods"]
        assert before.headers["Access-Control-Allow-Headers"] == "authorization,x-session-id"
        refused = http.get("/v1/models", headers={"Origin": PAGE})
        assert refused.status_code == 401
        assert refused.headers["Access-Control-Allow-Origin"] == PAGE, "a page may read the error"
        key = {"Authorization": "Bearer secret"}
        answer = http.get("/v1/models", headers={"Origin": PAGE, **key})
        assert "x-request-id" in answer.headers["Access-Control-Expose-Headers"]
        other = http.get("/v1/models", headers={"Origin": "https://other.example", **key})
        assert "Access-Control-Allow-Origin" not in other.headers
        assert other.headers["Vary"] == "Origin"
        model = answer.json()["data"][0]["id"]
        body = {"model": model, "prompt": "a", "max_tokens": 2, "stream": True}
        streamed = http.post("/v1/completions", json=body, headers={"Origin": PAGE, **key})
        assert streamed.headers["Access-Control-Allow-Origin"] == PAGE


def test_an_invalid_origin_is_refused(tiny: Path) -> None:
    with pytest.raises(RuntimeError, match="is not an origin"):
        GatewayHarness("--model", str(tiny), "--cors-origin", "https://page.example/path")


# sockets


def test_a_unix_socket(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with GatewayHarness("--model", str(tiny), "--uds", str(path)) as server:
        assert server.address == f"unix:{path}"
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://myna") as http:
            model = http.get("/v1/models").json()["data"][0]["id"]
            answer = http.post("/v1/completions", json={"model": model, "prompt": "a", "max_tokens": 2})
            assert answer.json()["usage"]["completion_tokens"] == 2
    assert not path.exists()
    with pytest.raises(RuntimeError, match="cannot listen on"):
        GatewayHarness("--model", str(tiny), "--uds", str(tmp_path / "no" / "socket"))


def test_tls(tiny: Path, tmp_path: Path) -> None:
    authority = trustme.CA()
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    certificate = authority.issue_cert("127.0.0.1")
    chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    certificate.private_key_pem.write_to_path(str(key))
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    with GatewayHarness("--model", str(tiny), "--tls-cert", str(chain), "--tls-key", str(key)) as server:
        assert server.address.startswith("https://")
        with httpx.Client(base_url=server.address, verify=trust) as http:
            assert http.get("/health/ready").status_code == 200
        with pytest.raises(httpx.TransportError):
            httpx.get(server.address.replace("https", "http") + "/health")
    for flags in (["--tls-cert", str(key)], ["--tls-cert", str(tmp_path / "none.pem")], ["--tls-key", str(key)]):
        with pytest.raises(RuntimeError, match=r"certificate|tls_cert"):
            GatewayHarness("--model", str(tiny), *flags)


# slow clients and many clients


@pytest.mark.slow
def test_a_client_that_does_not_read_does_not_delay_others(server: GatewayHarness, http: httpx.Client) -> None:
    session = "slow-reader"
    body = {**CHAT, "stream": True, "max_tokens": 800, "ignore_eos": True, "logprobs": True, "top_logprobs": 20}
    content = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Semantic-Session: {session}\r\nContent-Length: {len(content)}"
    with raw(server, buffer=4096) as connection:
        connection.sendall(head.encode() + b"\r\n\r\n" + content)
        deadline = time.monotonic() + 120
        states: set[str] = set()
        while "done" not in states and time.monotonic() < deadline:
            time.sleep(0.1)
            answer = http.get(f"/v1/sessions/{session}/graph")
            states = {call["state"] for call in answer.json().get("calls", ())}
        assert states == {"done"}, "the engine does not wait for slow clients"
        assert http.post("/v1/chat/completions", json=CHAT).status_code == 200
        received = b""
        while not received.endswith(b"0\r\n\r\n"):
            more = connection.recv(1 << 20)
            assert more, "the answer is complete"
            received += more
    assert b'"finish_reason":"length"' in received
    http.delete(f"/v1/sessions/{session}")


async def test_ten_thousand_idle_connections(tiny: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 12_000:
        pytest.skip(f"this system lets a process have {hard} files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    writers: list[asyncio.StreamWriter] = []
    try:
        with GatewayHarness("--model", str(tiny)) as server:
            process = psutil.Process(server.process.pid)
            before = process.memory_info().rss
            address = urlsplit(server.address)
            for _ in range(100):
                opened = await asyncio.gather(
                    *(asyncio.open_connection(address.hostname, address.port) for _ in range(100))
                )
                writers += [writer for _, writer in opened]
            async with httpx.AsyncClient(base_url=server.address, timeout=30) as http:
                model = (await http.get("/v1/models")).json()["data"][0]["id"]
                answer = await http.post("/v1/completions", json={"model": model, "prompt": "a", "max_tokens": 2})
            assert answer.status_code == 200
            each = (process.memory_info().rss - before) / len(writers)
            assert each < 64 << 10, f"a connection takes {each:.0f} bytes"
    finally:
        for writer in writers:
            writer.transport.abort()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# clients that close their sending half


def half_closed(server: GatewayHarness, body: dict[str, Any], *, version: str = "1.1", cut: int = 0) -> bytes:
    """Return what a client receives that closes its sending half after the request, or `cut` bytes before its end."""
    content = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/{version}\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
    with raw(server) as connection:
        connection.sendall(head.encode() + content[: len(content) - cut])
        connection.shutdown(socket.SHUT_WR)
        got = b""
        while data := connection.recv(1 << 16):
            got += data
    return got


def final(answer: bytes) -> bytes:
    """Return the final answer, without interim ones."""
    while answer.startswith(b"HTTP/1.1 102 "):
        answer = answer.partition(b"\r\n\r\n")[2]
    return answer


@pytest.mark.parametrize("more", [{}, {"max_tokens": 40, "ignore_eos": True}, {"model": "none"}])
def test_a_client_that_closes_its_sending_half_gets_its_answer(server: GatewayHarness, more: dict[str, Any]) -> None:
    answer = final(half_closed(server, CHAT | more))
    head, _, content = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 404" if "model" in more else b"HTTP/1.1 200")
    result = json.loads(content)
    assert "model" in more or result["usage"]["completion_tokens"] == (more or CHAT)["max_tokens"]


def test_a_client_that_closes_its_sending_half_gets_its_stream(server: GatewayHarness) -> None:
    answer = final(half_closed(server, CHAT | {"stream": True, "max_tokens": 20, "ignore_eos": True}))
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"data: [DONE]" in answer


@pytest.mark.parametrize("how", [{"version": "1.0"}, {"cut": 5}])
def test_half_closed_clients_that_look_like_disconnected_ones_get_no_answer(
    server: GatewayHarness, how: dict[str, Any]
) -> None:
    assert half_closed(server, CHAT, **how) == b"", "no interim answers in HTTP/1.0, and half a body is no request"


def test_interim_answers_repeat_at_growing_intervals(server: GatewayHarness) -> None:
    answer = half_closed(server, CHAT | {"max_tokens": 100, "ignore_eos": True})
    interim = answer.count(b"HTTP/1.1 102 Processing\r\n\r\n")
    assert 2 <= interim <= 12, "the interval doubles"
    assert final(answer).startswith(b"HTTP/1.1 200")
