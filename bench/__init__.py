"""Measures myna, and any other OpenAI-compatible server, through HTTP."""
