"""Estimate the tokens of prompts whose tokens only an upstream server knows."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gateway.graph.segments import Characters, Messages, Segment, Text
from gateway.runtime.json_codec import encode_json

_BYTES_PER_TOKEN = 3
"""Bytes of a token in UTF-8: English text has four to five, code and Chinese text three."""
_MEDIA_TOKENS = 1_500
"""Tokens of an image or a file."""


def estimate_tokens(segments: Sequence[Segment]) -> int:
    """Return the number of tokens of a prompt's known part: exact for tokens, an estimate for texts."""
    tokens, size = 0, 0
    for segment in segments:
        match segment:
            case Text():
                tokens += len(segment.tokens)
            case Characters():
                size += len(segment.text.encode(errors="surrogatepass"))
            case Messages():
                size += len(encode_json(segment.fields))
                for message in segment.messages:
                    text, media = _without_media(message)
                    size += len(encode_json(text))
                    tokens += media * _MEDIA_TOKENS
    return tokens + math.ceil(size / _BYTES_PER_TOKEN)


def _without_media(message: Mapping[str, Any]) -> tuple[Mapping[str, Any], int]:
    """Return a message without its parts that are not text, and their number."""
    content = message["content"]
    if isinstance(content, str):
        return message, 0
    texts = [part for part in content if isinstance(part, str) or part["type"] == "text"]
    return {**message, "content": texts}, len(content) - len(texts)
