"""Sign the model's reasoning, so that the server recognises it when a client sends it back."""

import base64
import hashlib
import hmac

_PREFIX = "myna1."


class ThinkingSigner:
    """Signer of the reasoning in answers to one tenant.

    The key is derived from the tenant, so every gateway verifies the signatures of every other one, also after a
    restart. A client could forge a signature, but only for its own conversations, in which it may write what it likes.
    """

    def __init__(self, tenant: str) -> None:
        self._key = hashlib.sha256(b"myna thinking\0" + tenant.encode()).digest()

    def sign(self, thinking: str) -> str:
        """Return the signature of a text."""
        digest = hmac.digest(self._key, thinking.encode(errors="surrogatepass"), "sha256")
        return _PREFIX + base64.urlsafe_b64encode(digest).decode().rstrip("=")

    def verify(self, thinking: str, signature: str) -> bool:
        """Return whether the signature is this server's, for this text and tenant."""
        if not signature.startswith(_PREFIX):  # Anthropic's, or another server's
            return False
        return hmac.compare_digest(self.sign(thinking).encode(), signature.encode(errors="surrogatepass"))
