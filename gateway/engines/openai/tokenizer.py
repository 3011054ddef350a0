"""Tokenizer of a model that an upstream server runs: loaded without its weights, and without torch."""

from pathlib import Path

from engine.errors import CheckpointError
from engine.tokenizer import Tokenizer

_FILES = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json", "generation_config.json"]


def load_tokenizer(source: str) -> Tokenizer:
    """Load the tokenizer of a folder, or of a hub id (`owner/name`). Raises CheckpointError."""
    if Path(source).expanduser().is_dir():
        return Tokenizer(Path(source).expanduser())
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise CheckpointError(f"no tokenizer {source!r}: there is no such folder, and a hub id has the form owner/name")
    from huggingface_hub import snapshot_download  # its import takes 0.3 s, and few starts need it
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Tokenizer(snapshot_download(source, allow_patterns=_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(f"the tokenizer of {source} could not be fetched: {error}") from error
