"""Texts of this server that clients keep in `encrypted_content` and send back.

They are encoded, not encrypted: the client has read the reasoning anyway, and could send any other summary as a
message.
"""

import base64
import binascii

_REASONING = "myna.reasoning.1."
_COMPACTION = "myna.compaction.1."


def write_reasoning(text: str) -> str:
    """Return the model's reasoning, encoded."""
    return _write(_REASONING, text)


def read_reasoning(content: str) -> str:
    """Return the encoded reasoning; "" if the content is not of this server."""
    return _read(_REASONING, content) or ""


def write_compaction(summary: str) -> str:
    """Return the summary of a conversation, encoded."""
    return _write(_COMPACTION, summary)


def read_compaction(content: str) -> str | None:
    """Return the encoded summary; None if the content is not of this server."""
    return _read(_COMPACTION, content)


def _write(prefix: str, text: str) -> str:
    return prefix + base64.urlsafe_b64encode(text.encode(errors="surrogatepass")).decode()


def _read(prefix: str, content: str) -> str | None:
    if not content.startswith(prefix):
        return None
    try:
        return base64.b64decode(content[len(prefix) :], b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        return None
