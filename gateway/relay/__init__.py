"""Requests that the gateway passes on to upstream servers as they are: embeddings, rerank, speech, images."""

from gateway.relay.relay import Relay, RelayedRequest

__all__ = ["Relay", "RelayedRequest"]
