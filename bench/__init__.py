"""Benchmarks of myna, and of any other OpenAI-compatible server, over HTTP."""
