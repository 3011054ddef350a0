"""Endpoints that upstream servers have besides chats and completions, and which models can use them."""

import re
from collections.abc import Collection, Iterable

CAPABILITIES = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
    "/v1/rerank": "rerank",
    "/v2/rerank": "rerank",
    "/rerank": "rerank",
    "/v1/score": "score",
    "/score": "score",
    "/v1/audio/transcriptions": "transcriptions",
    "/v1/audio/translations": "translations",
    "/v1/audio/speech": "speech",
    "/v1/images/generations": "images",
    "/v1/images/edits": "image_edits",
}
"""Capability of a model that each route needs."""
TEXT = ("chat", "completions")
"""Capabilities of models that generate text."""
_BY_NAME = (
    (r"rerank", ("rerank", "score")),
    (r"embed|(^|[-/])(bge|e5|gte|minilm)([-_.]|$)|all-minilm", ("embeddings",)),
    (r"whisper|transcribe", ("transcriptions", "translations")),
    (r"(^|[-/])(tts|kokoro)", ("speech",)),
    (r"dall-e|gpt-image|stable-diffusion|sdxl|flux", ("images", "image_edits")),
)
"""Patterns of the names of well-known models, in lower case, and what these models can do."""


def guess_capabilities(model: str, routes: Collection[str] = ()) -> tuple[str, ...]:
    """Return the capabilities that the name of a model suggests. `routes`: routes of its server, if the server
    documents them; a server documents only routes that it has."""
    name = model.lower()
    for pattern, capabilities in _BY_NAME:
        if re.search(pattern, name):
            return capabilities
    documented = order_capabilities(CAPABILITIES[route] for route in routes if route in CAPABILITIES)
    return documented or TEXT


def order_capabilities(capabilities: Iterable[str]) -> tuple[str, ...]:
    """Return the capabilities without repetitions, in one order for all models."""
    known = set(capabilities)
    return tuple(capability for capability in dict.fromkeys(CAPABILITIES.values()) if capability in known)
