"""Engines on upstream servers with Anthropic's API. Connections, retries and limits are those of `engines/openai`."""

from gateway.engines.anthropic.engine import AnthropicEngine

__all__ = ["AnthropicEngine"]
