"""POST /v1/embeddings for models of this server. Requests for upstream servers are `relayed`."""

from typing import Annotated, Any, Literal

import msgspec
from pydantic import Field, field_validator

from compat.bounds import MAX_INTEGER
from compat.openai.base import Request

MAX_INPUTS = 2_048
"""Maximum number of texts in one request, as in OpenAI's API."""


class OwnEmbeddingRequest(Request):
    """A request for the embeddings of texts, or of texts as tokens."""

    model: str
    input: Any
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None

    @field_validator("input")
    @classmethod
    def _check_input(cls, content: Any) -> list[str] | list[list[int]]:
        """Return a list of texts, or of lists of tokens."""
        inputs = [content] if isinstance(content, str) or _is_tokens(content) else content
        if not isinstance(inputs, list) or not inputs:
            raise ValueError("must be a text, a list of texts, a list of tokens, or a list of such lists")
        if len(inputs) > MAX_INPUTS:
            raise ValueError(f"{len(inputs)} texts; at most {MAX_INPUTS} are allowed")
        if all(isinstance(each, str) for each in inputs):
            if not all(inputs):
                raise ValueError("a text must not be empty")
        elif not all(_is_tokens(each) for each in inputs):
            raise ValueError("must be a text, a list of texts, a list of tokens, or a list of such lists")
        return inputs


def _is_tokens(content: Any) -> bool:
    return (
        isinstance(content, list)
        and bool(content)
        and all(type(token) is int and 0 <= token <= MAX_INTEGER for token in content)
    )


class EmbeddingUsage(msgspec.Struct, frozen=True):
    """Token counts of a request for embeddings."""

    prompt_tokens: int
    total_tokens: int


class Embedding(msgspec.Struct, frozen=True):
    """Embedding of one text: a list of numbers, or the float32 values in base64."""

    index: int
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"
