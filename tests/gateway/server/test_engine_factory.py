"""EngineFactory: certificate authorities that connections to engines trust."""

import asyncio
import ssl
from pathlib import Path

import pytest
import trustme

from gateway.config.settings import ServeSettings
from gateway.engines.pool import EnginePool
from gateway.server.engine_factory import EngineFactory


async def trusts(client: ssl.SSLContext, authority: trustme.CA) -> bool:
    """Return whether the client accepts a server with a certificate of this authority."""
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    listening = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=server)
    port = listening.sockets[0].getsockname()[1]
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client)
    except ssl.SSLCertVerificationError:
        return False
    finally:
        listening.close()
    writer.close()
    return True


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # from refused connections
async def test_engine_ca_is_trusted_beside_public_authorities_or_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    public, own, unknown = trustme.CA(), trustme.CA(), trustme.CA()
    public.cert_pem.write_to_path(tmp_path / "public")
    own.cert_pem.write_to_path(tmp_path / "own")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "public"))
    default = EngineFactory(ServeSettings(port=0), EnginePool(1.0))
    configured = EngineFactory(ServeSettings(port=0, engine_ca=tmp_path / "own"), EnginePool(1.0))
    authorities = (public, own, unknown)
    assert [await trusts(default.upstream_tls, authority) for authority in authorities] == [True, False, False]
    assert [await trusts(default.engine_tls, authority) for authority in authorities] == [True, False, False]
    assert [await trusts(configured.upstream_tls, authority) for authority in authorities] == [True, True, False], (
        "an upstream server may have a public certificate"
    )
    assert [await trusts(configured.engine_tls, authority) for authority in authorities] == [False, True, False], (
        "an engine of this project may not"
    )
