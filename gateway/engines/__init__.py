"""Engines behind one protocol: fill, generate, free, and what each can do."""
