"""Read the JSON files of a checkpoint."""

import json
from pathlib import Path
from typing import Any

from engine.errors import CheckpointError


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raise CheckpointError, which names the file, if that fails."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # JSON's and Unicode's errors are ValueErrors
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object, and holds a {type(content).__name__}")
    return content
