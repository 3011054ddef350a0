"""Engines on upstream servers: any server with OpenAI's API."""

from gateway.engines.openai.engine import OpenAIEngine
from gateway.engines.openai.profiles import KINDS
from gateway.engines.openai.upstream import Upstream, UpstreamConfig

__all__ = ["KINDS", "OpenAIEngine", "Upstream", "UpstreamConfig"]
