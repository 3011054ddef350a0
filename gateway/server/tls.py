"""Certificates that this server shows."""

import ssl
from pathlib import Path


def tls_context(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """What connections are secured with, if they are. Raises OSError, ssl.SSLError among them."""
    if certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return context
