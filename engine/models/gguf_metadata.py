"""A GGUF file's metadata by key."""

from pathlib import Path
from typing import Any

import gguf

from engine.errors import CheckpointError


class Fields:
    """Values of keys; `path` is for messages."""

    def __init__(self, reader: gguf.GGUFReader, path: Path) -> None:
        self._fields = reader.fields
        self.path = path

    def get(self, key: str, default: Any = None) -> Any:
        """The value, or the default where the file has none."""
        field = self._fields.get(key)
        return default if field is None else field.contents()

    def need(self, key: str) -> Any:
        """The value. Raises CheckpointError where the file has none."""
        value = self.get(key)
        if value is None:
            raise CheckpointError(f"{self.path} has no {key!r} in its metadata")
        return value
