"""The gateway: OpenAI-compatible HTTP in, engine primitives out."""
