"""Metadata of a GGUF file, by key."""

from pathlib import Path
from typing import Any

import gguf

from engine.errors import CheckpointError


class Metadata:
    """Metadata values by key. `path` is for error messages."""

    def __init__(self, reader: gguf.GGUFReader, path: Path) -> None:
        self._fields = reader.fields
        self.path = path

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a key, or the default if the file has none."""
        field = self._fields.get(key)
        return default if field is None else field.contents()

    def require(self, key: str) -> Any:
        """Return the value of a key. Raise CheckpointError if the file has none."""
        value = self.get(key)
        if value is None:
            raise CheckpointError(f"{self.path} has no {key!r} in its metadata")
        return value
