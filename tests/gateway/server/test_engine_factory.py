"""gateway/server/engine_factory.py: what engines are reached with."""

import asyncio
import ssl
from pathlib import Path

import pytest
import trustme

from gateway.config.settings import ServeSettings
from gateway.engines.pool import EnginePool
from gateway.server.engine_factory import EngineFactory


async def trusts(client: ssl.SSLContext, authority: trustme.CA) -> bool:
    """Whether the client talks to a server with a certificate of this authority."""
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


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of connections that were refused
async def test_an_authority_of_ours_is_trusted_beside_everybodys_or_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everybodys, ours, nobodys = trustme.CA(), trustme.CA(), trustme.CA()
    everybodys.cert_pem.write_to_path(tmp_path / "everybodys")
    ours.cert_pem.write_to_path(tmp_path / "ours")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "everybodys"))
    plain = EngineFactory(ServeSettings(port=0), EnginePool(1.0))
    told = EngineFactory(ServeSettings(port=0, engine_ca=tmp_path / "ours"), EnginePool(1.0))
    authorities = (everybodys, ours, nobodys)
    assert [await trusts(plain.https, one) for one in authorities] == [True, False, False]
    assert [await trusts(plain.links, one) for one in authorities] == [True, False, False]
    assert [await trusts(told.https, one) for one in authorities] == [True, True, False], "servers are anybody's"
    assert [await trusts(told.links, one) for one in authorities] == [False, True, False], "engines are ours"
