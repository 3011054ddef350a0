"""gateway/server/engine_factory.py: engines of the settings, and the certificate authorities that they trust."""

import asyncio
import ssl
from pathlib import Path

import pytest
import trustme

from gateway.config.settings import ServeSettings, parse
from gateway.engines.pool import EnginePool
from gateway.server.engine_factory import EngineFactory, engine_configs


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


def settings(*arguments: str) -> ServeSettings:
    return parse(ServeSettings, arguments, "myna serve")


@pytest.fixture(autouse=True)
def without_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ServeSettings.model_fields:
        monkeypatch.delenv(f"MYNA_{name.upper()}", raising=False)


@pytest.mark.parametrize(
    ("arguments", "gpus", "devices", "peers"),
    [
        ([], 0, ["auto"], 1),
        (["--engines", "2"], 0, ["auto", "auto"], 2),
        ([], 2, ["cuda:0", "cuda:1"], 1),
        (["--engines", "3"], 2, ["cuda:0", "cuda:1", "cuda:0"], 2),
        (["--engines", "1"], 2, ["cuda:0"], 1),
        (["--device", "cuda:1"], 2, ["cuda:1"], 1),
        (["--device", "cpu"], 2, ["cpu"], 1),
        (["--kernels", "cpu"], 2, ["auto"], 1),
    ],
)
def test_engines_are_distributed_over_the_gpus(arguments: list[str], gpus: int, devices: list[str], peers: int) -> None:
    configs = engine_configs(settings(*arguments), gpus)
    assert [config.device for config in configs] == devices
    assert {config.peers for config in configs} == {peers}
