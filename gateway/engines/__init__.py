"""Engines behind one protocol: `fill`, `generate` and `free` of contexts, and what each engine supports."""
