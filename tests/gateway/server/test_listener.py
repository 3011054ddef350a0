"""gateway/server/listener.py: addresses of the server."""

import asyncio
import resource
import socket
from pathlib import Path

import aiohttp
import pytest
import trustme
from aiohttp import web

from gateway.config.settings import ServeSettings
from gateway.server.listener import allow_many_connections, listening, requested_address


def app() -> web.Application:
    async def greet(request: web.Request) -> web.StreamResponse:
        return web.Response(text="hello")

    app = web.Application()
    app.router.add_get("/", greet)
    return app


async def test_a_free_port_is_in_the_address() -> None:
    async with listening(app(), ServeSettings(port=0)) as address:
        async with aiohttp.ClientSession() as http, http.get(address) as response:
            assert await response.text() == "hello"
        port = int(address.removeprefix("http://127.0.0.1:"))
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_an_ipv6_address_has_brackets() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    async with listening(app(), ServeSettings(host="::1", port=0)) as address:
        assert address.startswith("http://[::1]:")
        async with aiohttp.ClientSession() as http, http.get(address) as response:
            assert response.status == 200


async def test_a_unix_socket_is_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with listening(app(), ServeSettings(uds=path)) as address:
        assert address == f"unix:{path}"
        connector = aiohttp.UnixConnector(str(path))
        async with aiohttp.ClientSession(connector=connector) as http, http.get("http://x/") as response:
            assert await response.text() == "hello"
    assert not path.exists()


async def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    settings = ServeSettings(port=0, tls_cert=tmp_path / "none", tls_key=tmp_path / "none")
    for _ in range(2):
        with pytest.raises(OSError):
            async with listening(app(), settings):
                pass
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = ServeSettings(port=taken.getsockname()[1])
        with pytest.raises(OSError):
            async with listening(app(), busy):
                pass


async def test_https(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "server")
    authority.cert_pem.write_to_path(tmp_path / "ca")
    import ssl

    trusted = ssl.create_default_context(cafile=tmp_path / "ca")
    settings = ServeSettings(port=0, tls_cert=tmp_path / "server", tls_key=tmp_path / "server")
    async with listening(app(), settings) as address:
        assert address.startswith("https://127.0.0.1:")
        async with aiohttp.ClientSession() as http, http.get(address, ssl=trusted) as response:
            assert response.status == 200


def test_errors_name_what_was_requested(tmp_path: Path) -> None:
    assert requested_address(ServeSettings(host="::", port=7)) == ":::7"
    assert requested_address(ServeSettings(uds=tmp_path / "s")) == str(tmp_path / "s")
    secured = ServeSettings(port=7, tls_cert=tmp_path / "c", tls_key=tmp_path / "k")
    assert requested_address(secured) == f"127.0.0.1:7 with the certificate {tmp_path / 'c'}"


def test_the_limit_of_open_files_is_raised_to_the_maximum() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(before[1] - 1, 4096), before[1]))
    try:
        allow_many_connections()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
