"""Engines with one protocol: `fill`, `generate` and `free` of contexts, and the features that each engine supports."""
