"""Tests of gateway/http_client/connector.py: names, addresses and certificates."""

import asyncio
import socket
import ssl
from typing import Any

import pytest
import trustme

from gateway.http_client.errors import ConnectError
from tests.gateway.http_client.raw_server import BODY, FRAMED, connected, raw_server, sends


async def test_no_server() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        async with connected(f"http://127.0.0.1:{taken.getsockname()[1]}") as pool:
            with pytest.raises(ConnectError, match="refused"):
                await pool.post("/x", b"{}")
    async with connected("http://nowhere.invalid") as pool:
        with pytest.raises(ConnectError):
            await pool.post("/x", b"{}")


async def test_tls() -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(serving)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with raw_server(sends(FRAMED["in chunks"]), tls=serving) as server:
        async with connected(server.url, tls=trusting) as pool:
            for _ in range(2):
                assert await (await pool.post("/x", b"{}")).read() == BODY
            assert server.connections == 1
        async with connected(server.url) as pool:
            with pytest.raises(ConnectError, match="certificate"):
                await pool.post("/x", b"{}")


async def test_addresses_are_resolved_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, resolved = asyncio.get_running_loop(), []
    resolve = loop.getaddrinfo

    async def counted(*target: Any, **options: Any) -> Any:
        resolved.append(target)
        return await resolve(*target, **options)

    monkeypatch.setattr(loop, "getaddrinfo", counted)
    async with raw_server(sends(FRAMED["until closed"], close=True)) as server, connected(server.url) as pool:
        for _ in range(3):
            assert await (await pool.post("/x", b"{}")).read() == BODY
        assert server.connections == 3
        assert len(resolved) == 1
        pool._connector._expiry = 0.0
        await (await pool.post("/x", b"{}")).read()
        assert len(resolved) == 2
