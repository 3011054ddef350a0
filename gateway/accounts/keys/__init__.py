"""Virtual API keys: their records, their storage, and their changes."""
