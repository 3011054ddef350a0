"""Engines on upstream servers: any server with OpenAI's API."""

from gateway.engines.openai.capabilities import CAPABILITIES
from gateway.engines.openai.engine import OpenAIEngine
from gateway.engines.openai.profiles import KINDS
from gateway.engines.openai.upstream import Upstream, UpstreamConfig

__all__ = ["CAPABILITIES", "KINDS", "OpenAIEngine", "Upstream", "UpstreamConfig"]
