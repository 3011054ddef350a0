"""gateway/server/tls.py: certificates of this server."""

from pathlib import Path

import pytest
import trustme

from gateway.server.tls import tls_context


def test_without_a_certificate_there_is_no_tls(tmp_path: Path) -> None:
    assert tls_context(None, None) is None
    assert tls_context(None, tmp_path / "key") is None


def test_a_certificate_with_its_key_in_one_file_or_in_two(tmp_path: Path) -> None:
    certificate = trustme.CA().issue_cert("localhost")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "both")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "chain")
    certificate.private_key_pem.write_to_path(tmp_path / "key")
    assert tls_context(tmp_path / "both", None) is not None
    assert tls_context(tmp_path / "chain", tmp_path / "key") is not None


def test_an_unusable_certificate_is_an_os_error(tmp_path: Path) -> None:
    first, second = (trustme.CA().issue_cert("localhost") for _ in range(2))
    first.cert_chain_pems[0].write_to_path(tmp_path / "chain")
    second.private_key_pem.write_to_path(tmp_path / "key")
    (tmp_path / "text").write_text("no certificate")
    for files in ((tmp_path / "none", None), (tmp_path / "text", None), (tmp_path / "chain", tmp_path / "key")):
        with pytest.raises(OSError):
            tls_context(*files)
