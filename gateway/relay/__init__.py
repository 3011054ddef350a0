"""Requests without a call: those that upstream servers answer as they are, such as rerank and speech, and
embeddings."""

from gateway.relay.embedder import Embedder
from gateway.relay.relay import Relay, RelayedRequest

__all__ = ["Embedder", "Relay", "RelayedRequest"]
