"""gateway/api/anthropic/signature.py: only signatures of this server, for the same text and tenant, are valid."""

import pytest

from gateway.api.anthropic.signature import ThinkingSigner

SIGNER = ThinkingSigner("tenant")


@pytest.mark.parametrize("text", ["", "I think.", "é\n" * 1_000, "\ud800"])
def test_a_signature_is_verified_by_every_signer_of_the_tenant(text: str) -> None:
    signature = SIGNER.sign(text)
    assert ThinkingSigner("tenant").verify(text, signature)
    assert not ThinkingSigner("").verify(text, signature)
    assert not SIGNER.verify(text + "!", signature)


@pytest.mark.parametrize(
    "signature", ["", "x", "myna1.", "EqQBCkgIARABGAIiQ", SIGNER.sign("a")[:-1], SIGNER.sign("b"), "myna1.é\ud800"]
)
def test_other_signatures_are_not_valid(signature: str) -> None:
    assert not SIGNER.verify("a", signature)
