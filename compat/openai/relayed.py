"""Requests that are passed on to upstream servers. Their servers check all fields that are not named here."""

from typing import Annotated, Any

from pydantic import ConfigDict, Field

from compat.bounds import BoundedModel

ModelName = Annotated[str, Field(min_length=1, max_length=1_000)]


class RelayedBody(BoundedModel):
    """A request that an upstream server answers. Unknown fields are passed on."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: ModelName


class EmbeddingRequest(RelayedBody):
    """POST /v1/embeddings."""

    input: Any


class RerankRequest(RelayedBody):
    """POST /v1/rerank: sort documents by how well they answer a query."""

    query: Any
    documents: Any


class ScoreRequest(RelayedBody):
    """POST /v1/score: compare pairs of texts. Servers differ in the names of the texts."""


class SpeechRequest(RelayedBody):
    """POST /v1/audio/speech: read a text aloud."""

    input: Annotated[str, Field(min_length=1)]


class ImageRequest(RelayedBody):
    """POST /v1/images/generations."""

    prompt: Annotated[str, Field(min_length=1)]


class TranscriptionForm(RelayedBody):
    """POST /v1/audio/transcriptions and /v1/audio/translations, as a multipart form."""

    file: bytes


class ImageEditForm(RelayedBody):
    """POST /v1/images/edits, as a multipart form."""

    image: bytes
    prompt: str
